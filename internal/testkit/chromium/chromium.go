// Package chromium finds or installs a Chromium and starts it headless, for tests in a real browser and for
// screenshots.
package chromium

import (
	"context"
	"io"
	"os"
	"os/exec"

	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/aptget"
)

// Ensure returns the browser's path. Where it is missing and root may use apt-get, Ensure announces that and
// installs it; elsewhere the error is aptget.ErrMissing.
func Ensure(ctx context.Context, out io.Writer) (string, error) {
	find := func() (path string, err error) {
		for _, name := range []string{
			"chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
			"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
		} {
			if path, err = exec.LookPath(name); err == nil {
				break
			}
		}
		return path, err
	}
	program := aptget.Program{Name: "Chromium", Find: find, Commands: aptget.Packages("chromium")}
	return program.Ensure(ctx, out)
}

// Start starts a browser with its profile in a temporary folder. It requests only the pages that it is
// directed to and ends with ctx or cancel.
func Start(ctx context.Context, path string) (browser context.Context, cancel context.CancelFunc) {
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.DisableGPU,
	}
	for _, flag := range []string{
		"disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
		"no-proxy-server", "hide-scrollbars",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's sandbox does not run as root
	}
	allocator, end := chromedp.NewExecAllocator(ctx, options...)
	browser, closeTab := chromedp.NewContext(allocator)
	return browser, func() { closeTab(); end() }
}
