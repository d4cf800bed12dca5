// Command screenshots takes the README's pictures: the dashboard of a generated ledger, in light, dark and on
// a phone, into docs/images.
package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
)

const folder = "docs/images"

func main() {
	try.Main("screenshots", func(ctx context.Context) error {
		var scope try.Scope
		return scope.Scoped(func() { takePictures(ctx, &scope, os.Stdout) })
	})
}

// form is a window that pictures are taken of.
type form struct {
	scheme        string
	width, height int64
	scale         float64
}

// takePictures starts the product on a generated ledger and takes the pictures.
func takePictures(ctx context.Context, scope *try.Scope, out io.Writer) {
	browserPath := try.Must(chromium.Ensure(ctx, out))
	try.Check(pglocal.Ensure(ctx, out))
	dir := try.Must(os.MkdirTemp("", "screenshots"))
	scope.OnEnd(func() error { return os.RemoveAll(dir) })
	pg := try.Must(pglocal.Start(ctx, pglocal.Options{}))
	scope.OnEnd(pg.Stop)
	purchase := fillLedger(ctx, pg.URL("postgres"))
	dashboard := startPrograms(ctx, scope, dir, pg.URL("postgres"))
	browser, closeBrowser := chromium.Start(ctx, browserPath)
	scope.OnClose(closeBrowser)
	forms := map[string]form{
		"light": {"light", 1240, 1500, 1}, "dark": {"dark", 1240, 1500, 1}, "phone": {"light", 390, 1700, 2},
	}
	for _, picture := range []struct{ page, form, path string }{
		{"overview", "light", "/?range=7d"},
		{"overview", "dark", "/?range=7d"},
		{"overview", "phone", "/?range=7d"},
		{"purchase", "light", "/purchases/" + purchase},
		{"purchase", "dark", "/purchases/" + purchase},
		{"dead", "light", "/dead"},
	} {
		data := compress(shoot(browser, dashboard+picture.path, forms[picture.form]))
		write(picture.page+"-"+picture.form+".png", data)
		_, _ = fmt.Fprintf(out, "%s, %s: %d KB\n", picture.page, picture.form, len(data)/1000)
	}
	// Each link's path and label. A test of the dashboard compares them with the template, so that the pictures
	// cannot go stale unnoticed.
	navigation := chromedp.Evaluate[string](`[...document.querySelectorAll("nav[aria-label=Pages] a")].map((a) =>
		a.getAttribute("href") + " " + a.firstChild.textContent.trim() + "\n").join("")`)
	write("navigation.txt", []byte(try.Must(chromedp.Run(browser, navigation))))
}

func write(name string, data []byte) {
	try.Check(os.WriteFile(filepath.Join(folder, name), data, 0o644)) //nolint:gosec // public
}

// fillLedger returns a delivered purchase with failed attempts.
func fillLedger(ctx context.Context, url string) (id string) {
	try.Must(ledger.Migrate(ctx, secret.String(url)))
	conn := try.Must(pgx.Connect(ctx, url))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	try.Check(ledgergen.Fill(ctx, conn, 6_000, 31*24*time.Hour))
	try.Check(conn.QueryRow(ctx, `
		SELECT checkout_session_id FROM purchases WHERE status = 'delivered' AND attempts > 2 AND livemode
		ORDER BY attempts, purchased_at DESC LIMIT 1`).Scan(&id))
	return id
}

// startPrograms builds and starts ingest and two workers, and returns the dashboard's address once it shows a
// worker.
func startPrograms(ctx context.Context, scope *try.Scope, dir, database string) (dashboard string) {
	nats := try.Must(natslocal.Start(natslocal.Options{}))
	scope.OnEnd(nats.Stop)
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	scope.OnClose(sim.Close)
	try.Check(launch.Build(ctx, dir, "-trimpath",
		"-ldflags", "-X purchase-relay/internal/service.version=v1.0.0", "./cmd/ingest", "./cmd/tiktok-worker"))
	start := func(name string, env []string) *process.Process {
		path := filepath.Join(dir, name)
		p := try.Must(process.Start(process.Command{Path: path, Env: env, Log: path + ".log"}))
		scope.OnEnd(func() error { return p.Stop(15 * time.Second) })
		return p
	}
	ingest := try.Must(launch.NewIngest(database, nats.URL()))
	dashboard = "http://" + ingest.Admin
	worker := launch.Worker{Admin: "127.0.0.1:0", TikTok: sim.URL, NATS: nats.URL()}.Env()
	start("ingest", ingest.Env())
	start("tiktok-worker", worker)
	last := start("tiktok-worker", worker)
	try.Check(last.Await(ctx, "wait for a running worker", time.Minute, func() bool {
		_, body := launch.Get(ctx, dashboard+"/api/v1/summary")
		return strings.Contains(body, `"state":"running"`)
	}))
	return dashboard
}

// shoot takes a picture of a page's upper part.
func shoot(browser context.Context, url string, f form) (picture []byte) {
	zone := emulation.SetTimezoneOverrideParams{TimezoneID: "Europe/Berlin"}
	try.Must(chromedp.Call(browser, emulation.SetTimezoneOverride, zone))
	locale := emulation.SetLocaleOverrideParams{Locale: "en-GB"}
	try.Must(chromedp.Call(browser, emulation.SetLocaleOverride, locale))
	try.Check(chromedp.Do(browser,
		chromedp.EmulateViewport(f.width, f.height, chromedp.EmulateScale(f.scale)), chromium.Scheme(f.scheme),
		chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#live"))))
	return try.Must(chromedp.Run(browser, chromedp.CaptureScreenshot()))
}

// compress keeps a picture's 256 most frequent colours: such pages have few.
func compress(shot []byte) []byte {
	picture := try.Must(png.Decode(bytes.NewReader(shot)))
	bounds, counts := picture.Bounds(), make(map[color.Color]int)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[picture.At(x, y)]++
		}
	}
	byCount := func(a, b color.Color) int { return cmp.Compare(counts[b], counts[a]) }
	colours := slices.SortedFunc(maps.Keys(counts), byCount)
	paletted := image.NewPaletted(bounds, colours[:min(len(colours), 256)])
	draw.Draw(paletted, bounds, picture, bounds.Min, draw.Src)
	var file bytes.Buffer
	try.Check((&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&file, paletted))
	return file.Bytes()
}
