package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/tiktoksim"
)

// run starts the product on a made-up ledger and takes the pictures.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("screenshots", flag.ContinueOnError)
	to := flags.String("to", "docs/images", "where the pictures go")
	every := flags.Bool("every", false, "every page in every form, instead of the README's few")
	n := flags.Int("purchases", 6_000, "purchases on the made-up ledger")
	if err := flags.Parse(args); err != nil {
		return err
	}
	browserPath, err := chromium.Ensure(ctx, out)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "screenshots")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s := &stage{dir: dir}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, out, *n); err != nil {
		return err
	}
	browser, closeBrowser := chromium.Start(ctx, browserPath, filepath.Join(dir, "browser"))
	defer closeBrowser()
	pages, err := s.pages(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*to, 0o750); err != nil {
		return err
	}
	for _, form := range []form{{"light", "light", 1240, 1}, {"dark", "dark", 1240, 1}, {"phone", "light", 390, 2}, {"phone-dark", "dark", 390, 2}} {
		for _, page := range pages {
			if !*every && !page.in[form.name] {
				continue
			}
			picture, err := shoot(browser, "http://"+s.admin+page.path, form, *every)
			if err != nil {
				return fmt.Errorf("%s in %s: %w", page.name, form.name, err)
			}
			file := filepath.Join(*to, page.name+"-"+form.name+".png")
			if err := os.WriteFile(file, picture, 0o644); err != nil { //nolint:gosec // pictures for everybody
				return err
			}
			_, _ = fmt.Fprintf(out, "%s  %d KB\n", file, len(picture)/1000)
		}
	}
	return nil
}

type page struct {
	name, path string
	in         map[string]bool
}

type form struct {
	name, scheme string
	width        int64
	scale        float64
}

// stage is the product, running.
type stage struct {
	dir    string
	admin  string
	ledger string
	closes []func() error
}

func (s *stage) close() error {
	var errs []error
	for _, end := range slices.Backward(s.closes) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (s *stage) open(ctx context.Context, out io.Writer, n int) error {
	if err := pglocal.Ensure(ctx, out); err != nil {
		return err
	}
	pg, err := pglocal.Start(ctx, pglocal.Options{})
	if err != nil {
		return err
	}
	s.closes = append(s.closes, pg.Stop)
	s.ledger = pg.URL("postgres")
	if _, err := ledger.Migrate(ctx, secret.Text(s.ledger)); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.ledger)
	if err != nil {
		return err
	}
	err = ledgergen.FillSpan(ctx, conn, n, 31*24*time.Hour)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	nats, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		return err
	}
	s.closes = append(s.closes, nats.Stop)
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	s.closes = append(s.closes, func() error { sim.Close(); return nil })
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-X purchase-relay/internal/service.version=v1.0.0", "-o", s.dir+"/", "./cmd/ingest", "./cmd/tiktok-worker") //nolint:gosec // our own sources
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, text)
	}
	public, err := freeport.Addr()
	if err != nil {
		return err
	}
	if s.admin, err = freeport.Addr(); err != nil {
		return err
	}
	programs := [][]string{{
		"ingest", "STRIPE_WEBHOOK_SECRET=whsec_pictures-0123456789", "DATABASE_URL=" + s.ledger, "NATS_URL=" + nats.URL(), "NATS_MAX_BYTES=1GiB",
		"INGEST_ADDR=" + public, "ADMIN_ADDR=" + s.admin,
	}}
	for range 2 {
		programs = append(programs, []string{
			"tiktok-worker", "TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + sim.URL + "/open_api/v1.3/event/track/",
			"NATS_URL=" + nats.URL(), "ADMIN_ADDR=127.0.0.1:0",
		})
	}
	var last *process.Process
	for _, p := range programs {
		if last, err = s.start(p[0], p[1:]); err != nil {
			return err
		}
	}
	return last.Await(ctx, "wait for a running worker", time.Minute, func() bool {
		body, err := get(ctx, "http://"+s.admin+"/api/v1/summary")
		return err == nil && bytes.Contains(body, []byte(`"state":"running"`))
	})
}

func (s *stage) start(name string, env []string) (*process.Process, error) {
	p, err := process.Start(process.Command{Path: filepath.Join(s.dir, name), Env: env, Log: filepath.Join(s.dir, name+".log")})
	if err == nil {
		s.closes = append(s.closes, func() error { return p.Stop(15 * time.Second) })
	}
	return p, err
}

// pages are those worth a picture; a purchase with a story is chosen from the ledger.
func (s *stage) pages(ctx context.Context) ([]page, error) {
	conn, err := pgx.Connect(ctx, s.ledger)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	var retried, dead string
	err = conn.QueryRow(ctx, `SELECT (SELECT checkout_session_id FROM purchases WHERE status = 'delivered' AND attempts > 2 AND livemode ORDER BY attempts, purchased_at DESC LIMIT 1),
		(SELECT checkout_session_id FROM purchases WHERE status = 'dead' AND reason = 'refused' ORDER BY purchased_at DESC LIMIT 1)`).Scan(&retried, &dead)
	if err != nil {
		return nil, err
	}
	in := func(forms ...string) map[string]bool {
		set := make(map[string]bool)
		for _, f := range forms {
			set[f] = true
		}
		return set
	}
	return []page{
		{"overview", "/?range=7d", in("light", "dark", "phone")},
		{"purchases", "/purchases", in("light", "phone")},
		{"purchase", "/purchases/" + retried, in("light", "dark", "phone")},
		{"dead", "/dead", in("light")},
		{"purchase-dead", "/purchases/" + dead, in()},
		{"attention", "/attention", in()},
		{"overview-30d", "/", in()},
		{"overview-24h", "/?range=24h", in()},
		{"nothing", "/purchases?status=pending", in()},
		{"problem", "/purchases/cs_nobody", in()},
	}, nil
}

// shoot takes one picture: of the whole page, or of its upper part.
func shoot(browser context.Context, url string, f form, whole bool) ([]byte, error) {
	height := int64(1500)
	if f.width < 500 {
		height = 1700
	}
	if err := chromedp.Do(browser, chromedp.EmulateViewport(f.width, height, chromedp.EmulateScale(f.scale))); err != nil {
		return nil, err
	}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: f.scheme}}}
	if _, err := chromedp.Call(browser, emulation.SetEmulatedMedia, media); err != nil {
		return nil, err
	}
	if _, err := chromedp.Call(browser, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Europe/Berlin"}); err != nil {
		return nil, err
	}
	if _, err := chromedp.Call(browser, emulation.SetLocaleOverride, emulation.SetLocaleOverrideParams{Locale: "en-GB"}); err != nil {
		return nil, err
	}
	if err := chromedp.Do(browser, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#live"))); err != nil {
		return nil, err
	}
	picture := chromedp.CaptureScreenshot()
	if whole {
		picture = chromedp.FullScreenshot(100)
	}
	shot, err := chromedp.Run(browser, picture)
	if err != nil {
		return nil, err
	}
	return smaller(shot)
}

// smaller writes a picture with at most 256 colours, its own most frequent ones: such pages have few.
func smaller(shot []byte) ([]byte, error) {
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		return nil, err
	}
	few := image.NewPaletted(full.Bounds(), frequent(full))
	draw.Draw(few, few.Bounds(), full, full.Bounds().Min, draw.Src)
	var file bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&file, few); err != nil {
		return nil, err
	}
	return file.Bytes(), nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}
