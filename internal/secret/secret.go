// Package secret keeps signing secrets, tokens and connection strings out of logs. Formatting, logging or
// encoding a String yields "[redacted]"; only Reveal returns the value.
package secret

const redacted = "[redacted]"

// String is a secret. The zero value means "not configured".
type String string

// Reveal returns the value. Call it where the secret is used, never where it is described.
func (s String) Reveal() string { return string(s) }

// String implements fmt.Stringer.
func (s String) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer, for %#v.
func (s String) GoString() string { return s.String() }

// MarshalText implements encoding.TextMarshaler, for JSON and zap's reflection.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
