package dashboard

import (
	"net/netip"
	"sync"
	"time"
)

// How fast tokens can be guessed. A peer is an IPv4 address or an IPv6 network of 64 bits, which is what one
// customer of a provider has.
const (
	freeGuesses   = 10                     // of a peer, compared at once
	guessRegained = 6 * time.Second        // after which it has one of them again
	guessPace     = 250 * time.Millisecond // between two comparisons when it has none left
	maxTurns      = 16                     // of a peer that wait for theirs, and so for at most 4 s
	maxAllTurns   = 32                     // of all peers: half of the listener's connections stay free
	maxPeers      = 4096                   // that are remembered
)

// throttle slows down peers that send wrong tokens. A token is compared only after it was admitted: who waits
// does not learn sooner that it is right.
type throttle struct {
	now func() time.Time

	mu    sync.Mutex
	peers map[netip.Prefix]*peer
	turns int
}

// peer is one that sent wrong tokens lately, or whose token is being compared.
type peer struct {
	guesses float64   // that it has left, as of at
	at      time.Time // of the last change
	turns   int       // that wait
	next    time.Time // the last turn that was given
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, peers: make(map[netip.Prefix]*peer)}
}

// peerOf returns the peer of a request's remote address. Addresses of no form are one peer together.
func peerOf(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	prefix, _ := addr.Prefix(bits) // the number of bits fits
	return prefix
}

// admit takes one of the peer's guesses and returns how long to wait before the token is compared. After the
// wait, waited must be called. ok is false where too many wait already: the token is not compared.
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
	if p.turns >= maxTurns || t.turns >= maxAllTurns {
		return 0, false
	}
	p.turns++
	t.turns++
	if p.next = p.next.Add(guessPace); p.next.Before(now) {
		p.next = now.Add(guessPace)
	}
	return p.next.Sub(now), true
}

// waited ends a turn.
func (t *throttle) waited(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turns--
	if p := t.peers[from]; p != nil && p.turns > 0 {
		p.turns--
	}
}

// right gives the guess back that a right token took without waiting.
func (t *throttle) right(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[from]
	if p == nil {
		return
	}
	p.regain(t.now())
	if p.guesses = min(freeGuesses, p.guesses+1); p.guesses == freeGuesses && p.turns == 0 {
		delete(t.peers, from)
	}
}

// makeRoom forgets any one peer that does not wait where there are too many: an attacker with thousands of
// addresses, each of which has its own guesses anyway, must neither fill the memory nor make it slow.
func (t *throttle) makeRoom() {
	if len(t.peers) < maxPeers {
		return
	}
	for prefix, p := range t.peers {
		if p.turns == 0 {
			delete(t.peers, prefix)
			return
		}
	}
}

func (p *peer) regain(now time.Time) {
	if p.at.IsZero() {
		p.at = now
	}
	p.guesses = min(freeGuesses, p.guesses+float64(now.Sub(p.at))/float64(guessRegained))
	p.at = now
}
