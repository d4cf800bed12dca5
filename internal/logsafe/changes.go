package logsafe

import "regexp"

// port matches a port in an address: a client's own port changes with each connection.
var port = regexp.MustCompile(`:\d+\b`)

// Changes decides which failures of a repeated operation are logged: the first one, each one with another
// text, and the recovery. Texts that differ in ports alone are equal. The zero value is ready to use; it is
// not safe for concurrent use.
type Changes struct {
	failed bool
	text   string
}

// Failed reports whether to log err: the last run succeeded or failed with another text.
func (c *Changes) Failed(err error) bool {
	text := port.ReplaceAllString(err.Error(), "")
	changed := !c.failed || text != c.text
	c.failed, c.text = true, text
	return changed
}

// Recovered reports whether to log a success: the last run failed.
func (c *Changes) Recovered() bool {
	recovered := c.failed
	*c = Changes{}
	return recovered
}
