package ledger_test

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/ledgertest"
)

const (
	sqlCounts = `SELECT COALESCE(string_agg(concat_ws(' ', pixel_id, event, day, total, browser, server,
		attributed, extract(epoch FROM asked_at)::bigint), ', ' ORDER BY pixel_id, day, event), '')
		FROM tiktok_counts`
	sqlHistory = `SELECT COALESCE(string_agg(concat_ws(' ', event, extract(epoch FROM asked_at)::bigint, server),
		', ' ORDER BY asked_at, event), '') FROM tiktok_count_history`
)

// answer returns the counts of a day, asked at a Unix time.
func answer(day string, asked int64, counts ...message.Count) message.Stats {
	return message.Stats{PixelID: "C4", Day: day, AskedAt: time.Unix(asked, 0), Counts: counts}
}

func shopping(server int64) message.Count {
	return message.Count{Event: "SHOPPING", Total: server + 70, Browser: 70, Server: server, Attributed: 9}
}

// Answers arrive in any order, repeatedly and concurrently; the latest one is recorded.
func TestRecordStats_LatestAnswerReplacesEarlierOnes(t *testing.T) {
	t.Parallel()
	now := time.Now().Unix()
	l := ledgertest.New(t)
	record := func(list ...message.Stats) {
		t.Helper()
		var group sync.WaitGroup
		errs := make([]error, len(list))
		for i, s := range list {
			group.Go(func() { errs[i] = l.RecordStats(t.Context(), s) })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, query, want string) {
		t.Helper()
		if diff := cmp.Diff(want, ledgertest.Ask[string](l, query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	record(answer("2026-01-01", now, shopping(40), message.Count{Event: "PAGE_VIEW", Total: 5}))
	record(answer("2026-01-01", now+60, shopping(50)))
	record(answer("2026-01-01", now+60, shopping(50)))                              // redelivered
	record(answer("2026-01-01", now+30, shopping(45), message.Count{Event: "OLD"})) // an older answer, late
	record(answer("2026-01-01", now+90, shopping(50)))                              // nothing changed
	stamp := func(n int64) string { return strconv.FormatInt(n, 10) }
	check("counts", sqlCounts, "C4 PAGE_VIEW 2026-01-01 0 0 0 0 "+stamp(now+90)+
		", C4 SHOPPING 2026-01-01 120 70 50 9 "+stamp(now+90))
	check("history", sqlHistory, "PAGE_VIEW "+stamp(now)+" 0, SHOPPING "+stamp(now)+" 40, PAGE_VIEW "+
		stamp(now+60)+" 0, SHOPPING "+stamp(now+60)+" 50")

	l.Exec("DELETE FROM tiktok_counts")
	l.Exec("UPDATE tiktok_count_history SET asked_at = now() - interval '31 days' WHERE total = 5")
	var many []message.Stats
	for i := range int64(40) {
		many = append(many, answer("2026-01-02", now+i, shopping(i)))
	}
	many[39].Counts = []message.Count{{Event: "PURCHASE", Total: 1, Server: 1}}
	rand.Shuffle(len(many), func(i, j int) { many[i], many[j] = many[j], many[i] })
	record(many[:20]...)
	record(many[20:]...)
	got := ledgertest.Ask[string](l, `
		SELECT COALESCE(string_agg(concat_ws(' ', event, server), ', ' ORDER BY event), '')
		FROM tiktok_counts WHERE server > 0`)
	if got != "PURCHASE 1" {
		t.Errorf("counts = %q, want those of the last answer", got)
	}
	n := ledgertest.Ask[int](l, `
		SELECT count(*) FROM tiktok_count_history WHERE asked_at < now() - interval '30 days'`)
	if n != 0 {
		t.Errorf("%d entries of the history are older than 30 days", n)
	}
}
