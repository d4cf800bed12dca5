package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
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

// run starts the product on a generated ledger and takes the pictures.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("screenshots", flag.ContinueOnError)
	to := flags.String("to", "docs/images", "folder of the pictures")
	every := flags.Bool("every", false, "every page in every form, instead of the README's few")
	n := flags.Int("purchases", 6_000, "purchases on the generated ledger")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := &stack{}
	return s.Scoped(func() {
		browserPath := try.Must(chromium.Ensure(ctx, out))
		try.Check(pglocal.Ensure(ctx, out))
		try.Check(os.MkdirAll(*to, 0o750))
		s.dir = try.Must(os.MkdirTemp("", "screenshots"))
		s.OnEnd(func() error { return os.RemoveAll(s.dir) })
		pages := s.startLedger(ctx, *n)
		s.startPrograms(ctx)
		browser, closeBrowser := chromium.Start(ctx, browserPath, filepath.Join(s.dir, "browser"))
		defer closeBrowser()
		for _, form := range []form{
			{"light", "light", 1240, 1500, 1},
			{"dark", "dark", 1240, 1500, 1},
			{"phone", "light", 390, 1700, 2},
			{"phone-dark", "dark", 390, 1700, 2},
		} {
			for _, page := range pages {
				if !*every && !slices.Contains(strings.Fields(page.forms), form.name) {
					continue
				}
				picture := compress(shoot(browser, "http://"+s.admin+page.path, form, *every))
				file := filepath.Join(*to, page.name+"-"+form.name+".png")
				try.Check(os.WriteFile(file, picture, 0o644)) //nolint:gosec // public pictures
				_, _ = fmt.Fprintf(out, "%s  %d KB\n", file, len(picture)/1000)
			}
		}
		navigation := try.Must(chromedp.Run(browser, chromedp.Evaluate[string](navigationScript)))
		file := filepath.Join(*to, "navigation.txt")
		try.Check(os.WriteFile(file, []byte(navigation), 0o644)) //nolint:gosec // public
	})
}

// navigationScript returns the pictured navigation: each link's path and label. A test of the dashboard
// compares it with the template, so that the pictures cannot go stale unnoticed.
const navigationScript = `[...document.querySelectorAll("nav[aria-label=Pages] a")].map((a) =>
	a.getAttribute("href") + " " + a.firstChild.textContent.trim() + "\n").join("")`

// page is worth a picture; forms are those that the README shows.
type page struct{ name, path, forms string }

type form struct {
	name, scheme  string
	width, height int64
	scale         float64
}

// stack is the running product.
type stack struct {
	try.Scope
	dir, admin, ledger string
}

// startLedger starts Postgres and fills a ledger. It chooses the purchases that are worth a picture.
func (s *stack) startLedger(ctx context.Context, n int) []page {
	pg := try.Must(pglocal.Start(ctx, pglocal.Options{}))
	s.OnEnd(pg.Stop)
	s.ledger = pg.URL("postgres")
	try.Must(ledger.Migrate(ctx, secret.String(s.ledger)))
	conn := try.Must(pgx.Connect(ctx, s.ledger))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	try.Check(ledgergen.FillSpan(ctx, conn, n, 31*24*time.Hour))
	var retried, dead string
	row := conn.QueryRow(ctx, `
		SELECT (SELECT checkout_session_id FROM purchases WHERE status = 'delivered' AND attempts > 2 AND livemode
				ORDER BY attempts, purchased_at DESC LIMIT 1),
			(SELECT checkout_session_id FROM purchases WHERE status = 'dead' AND reason = 'refused'
				ORDER BY purchased_at DESC LIMIT 1)`)
	try.Check(row.Scan(&retried, &dead))
	return []page{
		{"overview", "/?range=7d", "light dark phone"},
		{"purchases", "/purchases", "light phone"},
		{"purchase", "/purchases/" + retried, "light dark phone"},
		{"dead", "/dead", "light"},
		{"purchase-dead", "/purchases/" + dead, ""},
		{"attention", "/attention", ""},
		{"overview-30d", "/", ""},
		{"overview-24h", "/?range=24h", ""},
		{"overview-today", "/?range=today", ""},
		{"nothing", "/purchases?status=pending", ""},
		{"problem", "/purchases/cs_nobody", ""},
	}
}

// startPrograms builds and starts ingest and two workers, and waits until the dashboard shows a worker.
func (s *stack) startPrograms(ctx context.Context) {
	nats := try.Must(natslocal.Start(natslocal.Options{}))
	s.OnEnd(nats.Stop)
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	s.OnEnd(func() error {
		sim.Close()
		return nil
	})
	try.Check(launch.Build(ctx, s.dir, "-trimpath",
		"-ldflags", "-X purchase-relay/internal/service.version=v1.0.0", "./cmd/ingest", "./cmd/tiktok-worker"))
	ingest := try.Must(launch.NewIngest(s.ledger, nats.URL()))
	s.admin = ingest.Admin
	worker := launch.Worker{Admin: "127.0.0.1:0", TikTok: sim.URL, NATS: nats.URL()}.Env()
	s.start("ingest", ingest.Env())
	s.start("tiktok-worker", worker)
	last := s.start("tiktok-worker", worker)
	try.Check(last.Await(ctx, "wait for a running worker", time.Minute, func() bool {
		_, body := launch.Get(ctx, "http://"+s.admin+"/api/v1/summary")
		return strings.Contains(body, `"state":"running"`)
	}))
}

func (s *stack) start(name string, env []string) *process.Process {
	path := filepath.Join(s.dir, name)
	p := try.Must(process.Start(process.Command{Path: path, Env: env, Log: path + ".log"}))
	s.OnEnd(func() error { return p.Stop(15 * time.Second) })
	return p
}

// shoot takes a picture of the whole page, or of its upper part.
func shoot(browser context.Context, url string, f form, whole bool) (picture []byte) {
	try.Check(chromedp.Do(browser, chromedp.EmulateViewport(f.width, f.height, chromedp.EmulateScale(f.scale))))
	scheme := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: f.scheme}}
	media := emulation.SetEmulatedMediaParams{Features: scheme}
	try.Must(chromedp.Call(browser, emulation.SetEmulatedMedia, media))
	zone := emulation.SetTimezoneOverrideParams{TimezoneID: "Europe/Berlin"}
	try.Must(chromedp.Call(browser, emulation.SetTimezoneOverride, zone))
	locale := emulation.SetLocaleOverrideParams{Locale: "en-GB"}
	try.Must(chromedp.Call(browser, emulation.SetLocaleOverride, locale))
	try.Check(chromedp.Do(browser, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#live"))))
	capture := chromedp.CaptureScreenshot()
	if whole {
		capture = chromedp.FullScreenshot(100)
	}
	return try.Must(chromedp.Run(browser, capture))
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
