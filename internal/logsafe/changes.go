package logsafe

import "regexp"

// port is a port in an address. A client's own port is another one with each connection.
var port = regexp.MustCompile(`:\d+\b`)

// Changes decides which failures of a repeated operation are logged: the first one, each one with another
// text, and the recovery. Texts that differ in ports alone are equal. The zero value has seen no failure. It
// is for one goroutine.
type Changes struct {
	failed bool
	text   string
}

// Failed reports whether an error is to be logged: the last run succeeded or failed with another text.
func (c *Changes) Failed(err error) bool {
	text := port.ReplaceAllString(err.Error(), "")
	changed := !c.failed || text != c.text
	c.failed, c.text = true, text
	return changed
}

// Recovered reports whether the run before a success had failed.
func (c *Changes) Recovered() bool {
	recovered := c.failed
	*c = Changes{}
	return recovered
}
