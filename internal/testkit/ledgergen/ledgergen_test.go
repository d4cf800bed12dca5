package ledgergen_test

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// The ledger reads as one that the product has written: every row passes the product's own reading.
func TestFill(t *testing.T) {
	url := pgtest.Database(t)
	if _, err := ledger.Migrate(t.Context(), secret.Text(url)); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	const n = 20_000
	if err := ledgergen.Fill(t.Context(), conn, n); err != nil {
		t.Fatal(err)
	}
	db, err := ledger.Open(t.Context(), secret.Text(url))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	reports := report.New(db)
	summary, err := reports.Summary(t.Context(), time.Now().Add(-2*ledgergen.Span), nil)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, status := range purchase.Statuses() {
		if total += summary.Counts[status]; summary.Counts[status] == 0 {
			t.Errorf("none is %s", status)
		}
	}
	if total != n || summary.Counts[purchase.StatusDelivered] < n*9/10 || len(summary.Values) < 5 {
		t.Errorf("%d purchases: %+v", total, summary)
	}
	recent, err := reports.Summary(t.Context(), time.Now().Add(-ledgergen.Span/12), nil)
	if err != nil || recent.Counts[purchase.StatusDelivered] < n/15 || recent.Counts[purchase.StatusDelivered] > n/10 {
		t.Errorf("the last month holds %d of %d: %v", recent.Counts[purchase.StatusDelivered], n, err)
	}

	claims, err := db.Claim(t.Context(), n)
	if err != nil || len(claims) != summary.Counts[purchase.StatusPending] {
		t.Errorf("%d of %d are claimed: %v", len(claims), summary.Counts[purchase.StatusPending], err)
	}
	for _, c := range claims {
		if e, err := message.DecodeEnvelope(c.Envelope); err != nil || e.EventID != c.ID || e.AmountMinor == nil || *e.AmountMinor > 29900 {
			t.Fatalf("%s: %+v, %v", c.ID, e, err)
		}
	}
	var odd int
	for what, sql := range map[string]string{
		"attempts that are not counted": `SELECT count(*) FROM public.purchases p WHERE attempts <> (SELECT count(*) FROM public.attempts a WHERE a.checkout_session_id = p.checkout_session_id)`,
		"paid ones without a customer":  `SELECT count(*) FROM public.purchases WHERE profile_id IS NULL AND status NOT IN ('rejected', 'awaiting_payment', 'payment_failed')`,
		"ends before the beginning":     `SELECT count(*) FROM public.purchases WHERE finished_at < created_at OR status IN ('delivered', 'dead', 'skipped') AND finished_at IS NULL`,
		"purchases without an event":    `SELECT count(*) FROM public.purchases p WHERE NOT EXISTS (SELECT FROM public.stripe_events e WHERE e.checkout_session_id = p.checkout_session_id)`,
		"unknown match keys":            `SELECT count(*) FROM public.purchases WHERE (envelope IS NULL) <> (match_keys IS NULL)`,
		"attempts before the purchase":  `SELECT count(*) FROM public.attempts a JOIN public.purchases p USING (checkout_session_id) WHERE a.at < p.created_at - interval '1 s'`,
		"purchases of the future":       `SELECT count(*) FROM public.purchases WHERE created_at > now()`,
	} {
		if err := conn.QueryRow(t.Context(), sql).Scan(&odd); err != nil || odd > 0 {
			t.Errorf("%s: %d, %v", what, odd, err)
		}
	}
	var id string
	if err := conn.QueryRow(t.Context(), `SELECT checkout_session_id FROM public.purchases WHERE status = 'dead' LIMIT 1`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	found, err := reports.Search(t.Context(), id, 2)
	if err != nil || len(found) != 1 || len(found[0].Attempts) != 2 || len(found[0].Events) == 0 {
		t.Errorf("history of %s: %+v, %v", id, found, err)
	}
	var left string
	err = conn.QueryRow(t.Context(), `SELECT COALESCE(string_agg(relname, ','), '') FROM pg_class WHERE relname = 'plan'`).Scan(&left)
	if diff := cmp.Diff("", left); err != nil || diff != "" {
		t.Errorf("left behind: %s %v", diff, err)
	}
}
