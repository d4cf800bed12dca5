package purchase_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

func TestNewMatchKeys_IP(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		raw, want string
		reason    purchase.DropReason
	}{
		{"203.0.113.7", "203.0.113.7", ""},
		{"8.8.8.8", "8.8.8.8", ""},
		{"2A00:1450:4001::1", "2a00:1450:4001::1", ""},
		{"::ffff:8.8.8.8", "8.8.8.8", ""},
		{"64:ff9b::808:808", "8.8.8.8", ""},
		{"8.8.8.8:52114", "8.8.8.8", ""},
		{"[2a00:1450::1]:443", "2a00:1450::1", ""},
		{"[2a00:1450::1]", "2a00:1450::1", ""},
		{"8.8.8.8, 10.0.0.1", "8.8.8.8", ""},
		{"10.0.0.1, 8.8.8.8,9.9.9.9", "8.8.8.8", ""},
		{"unknown, 8.8.8.8", "8.8.8.8", ""},
		{`"8.8.8.8"`, "8.8.8.8", ""},
		{"127.0.0.1", "", purchase.DropNotPublic},
		{"::1", "", purchase.DropNotPublic},
		{"::ffff:127.0.0.1", "", purchase.DropNotPublic},
		{"64:ff9b::a00:1", "", purchase.DropNotPublic},
		{"10.1.2.3", "", purchase.DropNotPublic},
		{"172.31.255.255", "", purchase.DropNotPublic},
		{"192.168.1.1:80", "", purchase.DropNotPublic},
		{"100.64.0.1", "", purchase.DropNotPublic},
		{"100.127.255.254", "", purchase.DropNotPublic},
		{"169.254.169.254", "", purchase.DropNotPublic},
		{"0.0.0.0", "", purchase.DropNotPublic},
		{"::", "", purchase.DropNotPublic},
		{"224.0.0.1", "", purchase.DropNotPublic},
		{"255.255.255.255", "", purchase.DropNotPublic},
		{"fd12:3456::1", "", purchase.DropNotPublic},
		{"fe80::1%eth0", "", purchase.DropNotPublic},
		{"ff02::1", "", purchase.DropNotPublic},
		{"10.0.0.1, 127.0.0.1", "", purchase.DropNotPublic},
		{"US", "", purchase.DropInvalid},
		{"256.1.1.1", "", purchase.DropInvalid},
		{"8.8.8", "", purchase.DropInvalid},
		{"undefined", "", purchase.DropPlaceholder},
		{"", "", ""},
	} {
		var want []purchase.Dropped
		if tc.reason != "" {
			want = []purchase.Dropped{{Key: "ip", Reason: tc.reason}}
		}
		c := &purchase.Checkout{Metadata: map[string]string{"client_ip": tc.raw}}
		keys, dropped := purchase.NewMatchKeys("", c)
		if keys.IP != tc.want || !cmp.Equal(dropped, want) {
			t.Errorf("client_ip %q: ip = %q, dropped %v, want %q, %v", tc.raw, keys.IP, dropped, tc.want, want)
		}
	}
}
