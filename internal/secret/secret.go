// Package secret is the word for what must never be printed: signing secrets, tokens, connection
// strings. Formatting, logging or encoding a Text yields "[redacted]"; only Reveal gives the value.
package secret

const redacted = "[redacted]"

// Text is a secret string. The zero value means "not configured".
type Text string

// Reveal returns the secret itself. Call it where the secret is used, never where it is described.
func (t Text) Reveal() string { return string(t) }

// String implements fmt.Stringer.
func (t Text) String() string {
	if t == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer, so that %#v is covered too.
func (t Text) GoString() string { return t.String() }

// MarshalText implements encoding.TextMarshaler, which covers JSON and zap's reflection.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
