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
	"path/filepath"
	"syscall"

	"github.com/chromedp/chromedp"
)

// ErrMissing says that there is no Chromium, and how to get one.
var ErrMissing = errors.New("no Chromium on this machine: install it (Debian and Ubuntu: `sudo apt-get install chromium`) to see the pages tested in a browser")

// Ensure returns the browser's path. Where it is missing and apt-get may install it (as root), it does, and says so on out.
func Ensure(ctx context.Context, out io.Writer) (string, error) {
	if path := find(); path != "" {
		return path, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Getuid() != 0 {
		return "", ErrMissing
	}
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "purchase-relay-install.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // apt-get lets one in
		return "", err
	}
	if path := find(); path != "" {
		return path, nil // the one before us did it
	}
	_, _ = fmt.Fprintln(out, "Chromium is missing: installing it with apt-get …")
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-y", "-qq", "--no-install-recommends", "chromium"}} {
		cmd := exec.CommandContext(ctx, apt, args...) //nolint:gosec // fixed arguments
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w (apt-get %s: %w, %.300s)", ErrMissing, args[0], err, output)
		}
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
