package purchase

import (
	"net/netip"
	"strings"
)

// cleanIP returns the buyer's address in what a shop read from a connection or a proxy's header: an address,
// one with a port, or X-Forwarded-For as it came. Each proxy appends to that list, so that the leftmost
// public address is the buyer's. Anybody can forge it; a forged one only spoils the forger's own match. A
// value without any public address has the reason DropNotPublic.
func cleanIP(raw string) (ip string, reason DropReason) {
	reason = DropInvalid
	for part := range strings.SplitSeq(raw, ",") {
		addr, ok := parseIP(strings.TrimSpace(part))
		switch {
		case !ok:
		case public(addr):
			return addr.String(), ""
		default:
			reason = DropNotPublic
		}
	}
	return "", reason
}

// parseIP reads an address with or without a port or brackets. One that is mapped into IPv6 (::ffff:0:0/96,
// or 64:ff9b::/96 by a translator) is the IPv4 address in it.
func parseIP(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		with, err := netip.ParseAddrPort(s)
		if err != nil {
			return addr, false
		}
		addr = with.Addr()
	}
	addr = addr.Unmap().WithZone("")
	if b := addr.As16(); addr.Is6() && translated.Contains(addr) {
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr, true
}

var (
	translated = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	reserved   = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),     // this network
		netip.MustParsePrefix("100.64.0.0/10"), // shared, behind a carrier's NAT
		netip.MustParsePrefix("198.18.0.0/15"), // benchmarks
		netip.MustParsePrefix("240.0.0.0/4"),   // reserved, broadcast
		netip.MustParsePrefix("fec0::/10"),     // site-local, deprecated
	}
)

// public reports whether a buyer could have an address. Those of documentation (192.0.2.0/24 and the like)
// pass: nobody has them, and every example uses them.
func public(addr netip.Addr) bool {
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
