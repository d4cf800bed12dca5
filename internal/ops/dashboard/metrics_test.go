package dashboard_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/ops/dashboard"
)

func TestSkippedRows_LogsEachRowOnceAnHour(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := dashboard.NewSkippedRows(zap.New(core), func() time.Time { return now }, registry)
	for range 3 {
		s.Report("relay", "cs_1", errors.New("corrupt"))
	}
	s.Report("sweeper", "cs_1", errors.New("corrupt"))
	s.Report("rollup", "ada@example.com", errors.New("corrupt"))
	now = now.Add(time.Hour)
	s.Report("relay", "cs_1", errors.New("corrupt"))
	var lines []string
	for _, e := range logs.All() {
		f := e.ContextMap()
		if f["remedy"] == "" || e.Message != "Unreadable row skipped" {
			t.Errorf("line = %q with %v, want a remedy", e.Message, f)
		}
		lines = append(lines, fmt.Sprint(f["where"], " ", f["id"]))
	}
	if got, want := fmt.Sprint(lines), "[relay cs_1 sweeper cs_1 rollup [not an id] relay cs_1]"; got != want {
		t.Errorf("lines = %s, want %s", got, want)
	}
	if n, err := testutil.GatherAndCount(registry, "purchase_relay_skipped_rows_total"); err != nil ||
		n != len(dashboard.SkippedWhere()) {
		t.Errorf("series = %d, %v, want %d", n, err, len(dashboard.SkippedWhere()))
	}
}
