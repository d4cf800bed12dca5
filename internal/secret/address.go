package secret

import (
	"net/netip"
	"net/url"
)

// InClear reports whether what is sent to an address can be read on the way: over plain http to another
// machine.
func InClear(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !ip.Unmap().IsLoopback())
}
