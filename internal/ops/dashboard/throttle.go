package dashboard

import (
	"net/netip"
	"sync"
	"time"
)

// How fast tokens can be guessed. A peer is an IPv4 address or a /64 network of IPv6, which is what a
// provider assigns to one customer.
const (
	freeGuesses   = 10                     // per peer, compared immediately
	guessRegain   = 6 * time.Second        // per free guess
	guessInterval = 250 * time.Millisecond // between comparisons without a free guess
	maxWaiting    = 16                     // requests per peer, so at most 4 s
	maxAllWaiting = 32                     // half of the listener's connections
	maxPeers      = 4096                   // kept in memory
)

// throttle slows down peers that send wrong tokens. A token is compared only after its wait, so that the
// wait reveals nothing.
type throttle struct {
	now func() time.Time

	mu      sync.Mutex
	peers   map[netip.Prefix]*peer
	waiting int
}

// peer is the state of a peer that sent a wrong token lately or has a request in progress.
type peer struct {
	guesses float64 // free guesses left at updated
	updated time.Time
	waiting int       // requests
	next    time.Time // of the last comparison that was granted
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, peers: make(map[netip.Prefix]*peer)}
}

// peerOf returns the peer of a remote address. All invalid addresses are one peer.
func peerOf(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	prefix, _ := addr.Prefix(bits) // bits is valid for addr
	return prefix
}

// admit takes a guess of a peer and returns how long to wait before its token is compared. If wait is above
// 0, the caller must call doneWaiting. ok is false if too many requests wait: the token must not be
// compared.
func (t *throttle) admit(from netip.Prefix) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	p := t.peers[from]
	if p == nil {
		t.makeRoom()
		p = &peer{guesses: freeGuesses}
		t.peers[from] = p
	}
	p.regain(now)
	if p.guesses >= 1 {
		p.guesses--
		return 0, true
	}
	if p.waiting >= maxWaiting || t.waiting >= maxAllWaiting {
		return 0, false
	}
	p.waiting++
	t.waiting++
	if p.next = p.next.Add(guessInterval); p.next.Before(now) {
		p.next = now.Add(guessInterval)
	}
	return p.next.Sub(now), true
}

// doneWaiting ends the wait that admit returned.
func (t *throttle) doneWaiting(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	if p := t.peers[from]; p != nil && p.waiting > 0 {
		p.waiting--
	}
}

// refund gives back the free guess that a right token took.
func (t *throttle) refund(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[from]
	if p == nil {
		return
	}
	p.regain(t.now())
	if p.guesses = min(freeGuesses, p.guesses+1); p.guesses == freeGuesses && p.waiting == 0 {
		delete(t.peers, from)
	}
}

// makeRoom evicts any peer that does not wait. It bounds memory and time against an attacker with thousands
// of addresses, each of which has free guesses anyway.
func (t *throttle) makeRoom() {
	if len(t.peers) < maxPeers {
		return
	}
	for prefix, p := range t.peers {
		if p.waiting == 0 {
			delete(t.peers, prefix)
			return
		}
	}
}

func (p *peer) regain(now time.Time) {
	if p.updated.IsZero() {
		p.updated = now
	}
	p.guesses = min(freeGuesses, p.guesses+float64(now.Sub(p.updated))/float64(guessRegain))
	p.updated = now
}
