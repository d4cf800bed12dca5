package backfill_test

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

func TestLedgerJournal_KeepsTheState(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	j, base := backfill.NewJournal(l.DB), ledgertest.Base()
	if b, err := j.Backfill(t.Context(), "command"); err != nil || !b.Until.IsZero() {
		t.Errorf("before any: %+v, %v", b, err)
	}
	b := backfill.State{Origin: "command", Since: base, Until: base.Add(time.Hour)}
	for _, change := range []func(){
		func() {},
		func() {
			b.Cursor, b.Reached = "evt_1", base
			b.Counts = backfill.Counts{Known: 1, New: 2, Ignored: 3, Rejected: 4, Malformed: 5}
		},
		func() { b.Finished = base.Add(2 * time.Hour) },
	} {
		change()
		if err := j.PutBackfill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		got, err := j.Backfill(t.Context(), "command")
		if diff := cmp.Diff(b, got, cmp.Comparer(time.Time.Equal)); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	if other, err := j.Backfill(t.Context(), "check"); err != nil || !other.Until.IsZero() {
		t.Errorf("another's: %+v, %v", other, err)
	}
}
