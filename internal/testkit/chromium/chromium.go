// Package chromium finds a Chromium on this machine, installs it where the package manager allows, and starts it without a
// window: for tests in a real browser and for the README's pictures.
package chromium

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/aptget"
)

// ErrMissing says that there is no Chromium, and how to get one.
var ErrMissing = errors.New("no Chromium on this machine, so the pages are not tested in a browser")

// Ensure returns the browser's path. Where it is missing and root may use apt-get, Ensure announces that on
// out and installs it.
func Ensure(ctx context.Context, out io.Writer) (string, error) {
	if path := find(); path != "" {
		return path, nil
	}
	install := aptget.Request{What: "Chromium", Commands: aptget.Packages("chromium"), Done: func() bool { return find() != "" }}
	if err := install.Run(ctx, out); err != nil {
		return "", fmt.Errorf("%w (%w)", ErrMissing, err)
	}
	if path := find(); path != "" {
		return path, nil
	}
	return "", ErrMissing
}

func find() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// Start starts a browser with its profile in dir, talking to nobody but the pages it is led to. Its end is cancel's or the
// context's.
func Start(ctx context.Context, path, dir string) (browser context.Context, cancel context.CancelFunc) {
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.Headless, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("hide-scrollbars", true),
	}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's own sandbox does not run under root
	}
	allocator, end := chromedp.NewExecAllocator(ctx, options...)
	browser, closeTab := chromedp.NewContext(allocator)
	return browser, func() { closeTab(); end() }
}
