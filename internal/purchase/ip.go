package purchase

import (
	"net/netip"
	"strings"
)

// cleanIP returns the buyer's IP address from an address, an address with a port, or an X-Forwarded-For
// header. Each proxy appends to that header, so the leftmost public address is the buyer's. A forged one
// only spoils the forger's own match.
func cleanIP(raw string) (ip string, reason DropReason) {
	reason = DropInvalid
	for part := range strings.SplitSeq(raw, ",") {
		addr, ok := parseIP(strings.TrimSpace(part))
		switch {
		case !ok:
		case isPublic(addr):
			return addr.String(), ""
		default:
			reason = DropNotPublic
		}
	}
	return "", reason
}

// parseIP parses an address with an optional port or brackets. It unwraps IPv4 addresses mapped into IPv6
// (::ffff:0:0/96, and 64:ff9b::/96 of NAT64).
func parseIP(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		withPort, err := netip.ParseAddrPort(s)
		if err != nil {
			return addr, false
		}
		addr = withPort.Addr()
	}
	addr = addr.Unmap().WithZone("")
	if b := addr.As16(); addr.Is6() && nat64.Contains(addr) {
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr, true
}

var (
	nat64    = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	reserved = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),     // this network
		netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
		netip.MustParsePrefix("198.18.0.0/15"), // benchmarking
		netip.MustParsePrefix("240.0.0.0/4"),   // reserved, broadcast
		netip.MustParsePrefix("fec0::/10"),     // site-local, deprecated
	}
)

// isPublic reports whether addr is public. Documentation addresses such as 192.0.2.0/24 pass: examples use
// them.
func isPublic(addr netip.Addr) bool {
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, p := range reserved {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}
