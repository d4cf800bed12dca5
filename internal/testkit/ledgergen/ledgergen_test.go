package ledgergen_test

import (
	"os"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// The product reads the rows as its own.
func TestFill(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	const n = 20_000
	if err := ledgergen.Fill(t.Context(), l.Conn, n, ledgergen.Year); err != nil {
		t.Fatal(err)
	}
	year, err := l.Summary(t.Context(), ledgertest.Since(time.Now().Add(-2*ledgergen.Year)), nil)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, status := range purchase.Statuses() {
		if year.Counts[status] == 0 {
			t.Errorf("no purchase is %s", status)
		}
		total += year.Counts[status]
	}
	if total != n || year.Counts[purchase.StatusDelivered] < n*9/10 || len(year.Values) < 5 {
		t.Errorf("summary of %d purchases = %+v", total, year)
	}
	month, err := l.Summary(t.Context(), ledgertest.Since(time.Now().Add(-ledgergen.Year/12)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := month.Counts[purchase.StatusDelivered]; got < n/15 || got > n/10 {
		t.Errorf("%d delivered in the last month, want a twelfth of %d", got, n)
	}
	claims, err := l.Claim(t.Context(), n)
	if err != nil || len(claims) != year.Counts[purchase.StatusPending] {
		t.Errorf("%d claimed, %v, want %d", len(claims), err, year.Counts[purchase.StatusPending])
	}
	for _, c := range claims {
		e, err := message.DecodeEnvelope(c.Envelope)
		if err != nil || e.EventID != c.ID || e.AmountMinor == nil || *e.AmountMinor > 29900 {
			t.Fatalf("%s: %+v, %v", c.ID, e, err)
		}
	}
	dead := ledgertest.Ask[string](l, `SELECT min(checkout_session_id) FROM purchases WHERE status = 'dead'`)
	found, err := l.Search(t.Context(), dead, 2)
	if err != nil || len(found) != 1 || len(found[0].Attempts) != 2 || len(found[0].Events) == 0 {
		t.Errorf("history of %s = %+v, %v", dead, found, err)
	}
	for name, condition := range map[string]string{
		"uncounted attempts": `attempts <> (SELECT count(*) FROM purchase_attempts a WHERE ` + same + `)`,
		"attempt before purchase": `EXISTS (SELECT FROM purchase_attempts a
			WHERE ` + same + ` AND a.at < p.created_at - interval '1 s')`,
		"no event":                   `NOT EXISTS (SELECT FROM stripe_events a WHERE ` + same + `)`,
		"paid without customer":      `profile_id IS NULL AND purchased_at IS NOT NULL AND status <> 'rejected'`,
		"finished before created":    `finished_at < created_at`,
		"finished without time":      `finished_at IS NULL AND status IN ('delivered', 'dead', 'skipped')`,
		"message without match keys": `(envelope IS NULL) <> (match_keys IS NULL)`,
		"first sale of a trial":      `first_sale AND (kind = 'trial' OR reason = 'no_payment')`,
		"sale before the first": `purchased_at < (SELECT first_paid_at FROM profiles f WHERE f.id = p.profile_id)
			AND reason <> 'no_payment'`,
		"no or two first sales": `first_sale AND 1 <> (SELECT count(*) FROM purchases q
			WHERE q.profile_id = p.profile_id AND q.first_sale)`,
		"created in the future": `created_at > now()`,
	} {
		if odd := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases p WHERE `+condition); odd > 0 {
			t.Errorf("%s: %d purchases, want none", name, odd)
		}
	}
}

const same = `a.checkout_session_id = p.checkout_session_id`
