package report

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

// "Paid" is defined in Go and in SQL.
func TestPaid_AgreesWithSQL(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	reasons := []purchase.Reason{
		purchase.ReasonNone, purchase.ReasonNoPayment, purchase.ReasonNotConfigured, purchase.ReasonTestPurchase,
		purchase.ReasonNoConsent, purchase.ReasonInternal, purchase.ReasonForgotten, purchase.ReasonInvalidEmail,
		purchase.ReasonRefused, purchase.ReasonExpired, purchase.ReasonCrash,
	}
	kinds := []purchase.Kind{purchase.KindCheckout, purchase.KindTrial, purchase.KindFirstPayment}
	rows, err := conn.Query(t.Context(), `SELECT status, reason, kind, `+paid+`, `+paidState+`,
		`+waitingState+`, `+leftOutState+`
		FROM unnest($1::text[]) status, unnest($2::text[]) reason, unnest($3::text[]) kind`,
		purchase.Statuses(), reasons, kinds)
	if err != nil {
		t.Fatal(err)
	}
	var status purchase.Status
	var reason purchase.Reason
	var kind purchase.Kind
	var row, state, waiting, leftOut bool
	count := 0
	fields := []any{&status, &reason, &kind, &row, &state, &waiting, &leftOut}
	_, err = pgx.ForEachRow(rows, fields, func() error {
		count++
		if want := purchase.Paid(status, reason, kind); row != want {
			t.Errorf("%s (%s), %s: paid = %t in SQL, %t in Go", status, reason, kind, row, want)
		}
		// The rollup counts trials in a column.
		if want := purchase.Paid(status, reason, purchase.KindCheckout); state != want {
			t.Errorf("%s (%s): paid = %t in the rollup, %t in Go", status, reason, state, want)
		}
		sale := purchase.StateOfSale(status, reason, kind)
		if want := sale == purchase.SaleWaiting; (row && waiting) != want {
			t.Errorf("%s (%s), %s: waiting = %t in SQL, %t in Go", status, reason, kind, waiting, want)
		}
		if want := sale == purchase.SaleLeftOut; (row && leftOut) != want {
			t.Errorf("%s (%s), %s: left out = %t in SQL, %t in Go", status, reason, kind, leftOut, want)
		}
		return nil
	})
	if want := len(purchase.Statuses()) * len(reasons) * len(kinds); err != nil || count != want {
		t.Errorf("combinations = %d, %v, want %d", count, err, want)
	}
	if !strings.Contains(sqlFold, paidState) || !strings.Contains(sqlRollupSales, paidState) {
		t.Error("the rollup does not use paidState")
	}
}
