package ledger

import (
	"fmt"
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

// BenchmarkRecord writes batches of new purchases, each of a new customer.
func BenchmarkRecord(b *testing.B) {
	db := openEmpty(b)
	serial := 0
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				receipts := make([]purchase.Receipt, n)
				for i := range receipts {
					serial++
					now := time.Now()
					email := fmt.Sprintf("buyer%d@example.com", serial)
					receipts[i] = purchase.Receipt{
						Event: purchase.Event{
							ID: fmt.Sprintf("evt_%d", serial), Type: purchase.TypeCompleted, Created: now, Livemode: true,
						},
						Received: now, Claim: true,
						Purchase: purchase.Purchase{
							ID: fmt.Sprintf("cs_%d", serial), Status: purchase.StatusPending, Mode: "subscription",
							Livemode: true, AmountMinor: new(int64(2999)), Currency: "usd", At: now, Email: email,
							Customer: fmt.Sprintf("cus_%d", serial), Subscription: fmt.Sprintf("sub_%d", serial),
							Keys: purchase.MatchKeys{Email: purchase.HashEmail(email), TTCLID: "E.C.P.abc"},
						},
					}
				}
				if _, err := db.record(b.Context(), receipts); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "µs/receipt")
		})
	}
}
