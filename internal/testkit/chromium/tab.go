package chromium

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/wait"
)

// timeout bounds each step in a tab, on a busy machine too.
const timeout = 3 * time.Minute

// Tab is a browser with one tab. Its methods fail the test on an error.
type Tab struct {
	T       *testing.T      // the test, or its subtest, that uses the tab
	Context context.Context // the browser's, for chromedp

	mu       sync.Mutex
	messages []string // the console's warnings and errors
}

// NewTab starts a browser. Where none can be installed the test is skipped.
func NewTab(t *testing.T) *Tab {
	t.Helper()
	path, err := Ensure(t.Context(), os.Stderr)
	switch {
	case errors.Is(err, aptget.ErrMissing):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	ctx, cancel := Start(context.Background(), path)
	t.Cleanup(cancel)
	p := &Tab{T: t, Context: ctx}
	console := chromedp.Console(ctx)
	go func() {
		for message, err := range console {
			if err != nil {
				return // the browser has ended
			}
			if message.IsException() || message.Type == chromedp.ConsoleError ||
				message.Type == chromedp.ConsoleWarning || message.Source == "security" {
				p.mu.Lock()
				p.messages = append(p.messages, message.String())
				p.mu.Unlock()
			}
		}
	}()
	return p
}

// CheckConsole fails on each warning and error since the last call that contains none of ignored.
func (p *Tab) CheckConsole(ignored ...string) {
	p.T.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, message := range p.messages {
		if !slices.ContainsFunc(ignored, func(part string) bool { return strings.Contains(message, part) }) {
			p.T.Errorf("console: %s", message)
		}
	}
	p.messages = nil
}

// Open opens an address and returns when the page is loaded.
func (p *Tab) Open(address string) {
	p.T.Helper()
	p.Do(chromedp.Navigate(address))
}

// Click clicks an element and waits for the next page.
func (p *Tab) Click(selector string) {
	p.T.Helper()
	p.step("click "+selector, func(ctx context.Context) error {
		_, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector)))
		return err
	})
}

// Do runs actions in the tab.
func (p *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.T.Helper()
	p.step("drive the browser", func(ctx context.Context) error { return chromedp.Do(ctx, actions...) })
}

// Evaluate returns a script's value. It waits for a promise. A script that a navigation interrupts runs again
// in the next page.
func Evaluate[T any](p *Tab, script string) (value T) {
	p.T.Helper()
	p.step(fmt.Sprintf("evaluate %.200s", script), func(ctx context.Context) (err error) {
		wait.Until(ctx, timeout, 10*time.Millisecond, func() bool {
			value, err = chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
			return !interrupted(err)
		})
		return err
	})
	return value
}

// interrupted reports whether a script's page ended before the script.
func interrupted(err error) bool {
	return err != nil && slices.ContainsFunc([]string{
		"Execution context was destroyed", "Inspected target navigated or closed",
		"Cannot find default execution context",
	}, func(text string) bool { return strings.Contains(err.Error(), text) })
}

// step runs f with a deadline.
func (p *Tab) step(what string, f func(context.Context) error) {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.Context, timeout)
	defer cancel()
	if err := f(ctx); err != nil {
		p.T.Fatalf("%s: %v", what, err)
	}
}

// Scheme chooses the colour scheme, light or dark, without animations.
func Scheme(name string) chromedp.Action[chromedp.Void] {
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}}
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, media)
		return chromedp.Void{}, err
	}
}

// Text returns an element's visible text; "" without the element.
func (p *Tab) Text(selector string) string {
	p.T.Helper()
	return Evaluate[string](p, `document.querySelector("`+selector+`")?.innerText ?? ""`)
}

// AwaitText waits until an element's visible text contains part.
func (p *Tab) AwaitText(selector, part string) {
	p.T.Helper()
	p.await(selector+" to contain "+part, func() bool { return strings.Contains(p.Text(selector), part) })
}

// Await waits until a script's value is true.
func (p *Tab) Await(script string) {
	p.T.Helper()
	p.await(script, func() bool { return Evaluate[bool](p, script) })
}

func (p *Tab) await(what string, done func() bool) {
	p.T.Helper()
	if !wait.Until(p.Context, timeout, 50*time.Millisecond, done) {
		p.T.Fatalf("timed out waiting for %s\npage:\n%s", what, p.Text("body"))
	}
}
