package dashboard

import (
	"fmt"
	"testing"
	"time"
)

func TestThrottle_MemoryIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	th := newThrottle(func() time.Time { return now })
	for i := range 20_000 {
		from := peerOf(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
		if wait, ok := th.admit(from); wait != 0 || !ok {
			t.Fatalf("peer %d: admit = %s, %t, want 0s, true", i, wait, ok)
		}
		if len(th.peers) > maxPeers {
			t.Fatalf("peers = %d, want %d at most", len(th.peers), maxPeers)
		}
	}
	before := len(th.peers)
	from := peerOf("192.0.2.1:1")
	th.admit(from)
	if th.refund(from); len(th.peers) != before-1 {
		t.Errorf("peers = %d, want %d: one was evicted, the new one is not kept",
			len(th.peers), before-1)
	}
}
