package main

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// looks is how often each page is asked for, after three times to warm up.
const looks = 20

// dashboard measures each page and each filter's first page on the large ledger, whole answers, warm.
func dashboard(ctx context.Context, b *bench) error {
	large, err := b.largeLedger(ctx)
	if err != nil {
		return err
	}
	in, err := b.startIngest(ctx, large, "")
	if err != nil {
		return err
	}
	defer in.stop()
	day := time.Now().UTC().AddDate(0, 0, -9).Format(time.DateOnly)
	for _, path := range []string{
		"/", "/?range=7d&mode=live", "/?range=24h&mode=test", "/api/v1/summary",
		"/purchases", "/purchases?mode=live", "/purchases?mode=test", "/purchases?status=delivered", "/purchases?status=dead", "/purchases?status=pending",
		"/purchases?status=skipped&mode=test", "/purchases?code=40002", "/purchases?code=0", "/purchases?code=12345", "/purchases?status=delivered&code=50002",
		"/purchases?day=" + day, "/purchases?status=dead&day=" + day, "/dead", "/attention",
	} {
		b.tell("GET %s", path)
		var took series
		for i := -3; i < looks; i++ {
			began := time.Now()
			status, _, err := ask(ctx, http.MethodGet, "http://"+in.admin+path, "")
			switch {
			case err != nil:
				return err
			case status != http.StatusOK:
				return fmt.Errorf("GET %s is answered %d", path, status)
			case i >= 0:
				took = append(took, float64(time.Since(began).Microseconds())/1000)
			}
		}
		b.report.add("GET "+path, "ms", took, atMost(100))
	}
	return nil
}
