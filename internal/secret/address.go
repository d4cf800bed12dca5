package secret

import (
	"net/netip"
	"net/url"
)

// InClear reports whether requests to a URL are readable on the network: plain http to another machine.
func InClear(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !ip.Unmap().IsLoopback())
}
