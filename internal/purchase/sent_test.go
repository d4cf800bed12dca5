package purchase_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

func TestMatchKeys_MaskedKeepsUncountedKeys(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := func(name string) string { return rapid.SampledFrom([]string{"", name}).Draw(rt, name) }
		keys := purchase.MatchKeys{
			Email: text("email"), Phone: text("phone"), ExternalID: text("id"), TTCLID: text("ttclid"),
			TTP: text("ttp"), IP: text("ip"), UserAgent: text("agent"), PageURL: text("page"),
			Referrer: text("referrer"), FirstName: text("first"), LastName: text("last"), Zip: text("zip"),
			City: text("city"), State: text("state"), Country: text("country"),
		}
		if got := keys.Masked(keys.Mask()); got != keys {
			rt.Fatalf("Masked(own mask) = %+v, want %+v", got, keys)
		}
		mask := int16(rapid.IntRange(0, 1<<purchase.MatchKeyKinds-1).Draw(rt, "mask"))
		got := keys.Masked(mask)
		if want := keys.Mask() & mask; got.Mask() != want {
			rt.Fatalf("mask of Masked(%b) = %b, want %b", mask, got.Mask(), want)
		}
		uncounted := func(k purchase.MatchKeys) []string {
			return []string{k.ExternalID, k.Referrer, k.LastName, k.State, k.Country}
		}
		if got, want := uncounted(got), uncounted(keys); !slices.Equal(got, want) {
			rt.Fatalf("uncounted keys of Masked(%b) = %q, want %q", mask, got, want)
		}
	})
}
