package service

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// console writes log lines for people: short time, level, message, then the fields, ids first. It never writes a control character
// that came from outside.
//
//	15:04:05.000  INFO   Signature verified                  checkout_session_id=cs_live_a1…  stripe_event_id=evt_…  livemode=true
type console struct {
	*zapcore.MapObjectEncoder
	colours bool
	pool    buffer.Pool
}

func newConsole(out io.Writer) *console {
	return &console{MapObjectEncoder: zapcore.NewMapObjectEncoder(), colours: Terminal(out), pool: buffer.NewPool()}
}

// Terminal says whether somebody looks: colours and progress bars in a file are noise.
func Terminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Clone implements zapcore.Encoder.
func (c *console) Clone() zapcore.Encoder { return c.clone() }

func (c *console) clone() *console {
	other := &console{MapObjectEncoder: zapcore.NewMapObjectEncoder(), colours: c.colours, pool: c.pool}
	maps.Copy(other.Fields, c.Fields)
	return other
}

// The order of fields: what a line is about, then the rest by name, then the long ones.
var fieldOrder = map[string]int{ //nolint:gochecknoglobals // a table, never written
	"checkout_session_id": -5, "event_id": -5, "stripe_event_id": -4, "profile_id": -3, "request_id": -2,
	"message": 1, "error": 2, "remedy": 3, "stack": 4,
}

const (
	dim   = "\x1b[2m"
	plain = "\x1b[0m"
)

func colour(l zapcore.Level) string {
	switch {
	case l >= zapcore.ErrorLevel:
		return "\x1b[31m"
	case l == zapcore.WarnLevel:
		return "\x1b[33m"
	case l == zapcore.InfoLevel:
		return "\x1b[36m"
	}
	return dim
}

// EncodeEntry implements zapcore.Encoder.
func (c *console) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	all := c.clone()
	for _, f := range fields {
		f.AddTo(all)
	}
	paint := func(colour, s string) string {
		if !c.colours {
			return s
		}
		return colour + s + plain
	}
	out := c.pool.Get()
	out.AppendString(paint(dim, e.Time.Format("15:04:05.000")))
	out.AppendString("  " + paint(colour(e.Level), fmt.Sprintf("%-5s", e.Level.CapitalString())) + "  ")
	if len(all.Fields) > 0 {
		out.AppendString(fmt.Sprintf("%-34s", visible(e.Message))) // so that most ids stand under each other
	} else {
		out.AppendString(visible(e.Message))
	}
	names := slices.SortedFunc(maps.Keys(all.Fields), func(a, b string) int {
		return cmp.Or(cmp.Compare(fieldOrder[a], fieldOrder[b]), strings.Compare(a, b))
	})
	for _, name := range names {
		if stack, ok := all.Fields[name].(string); ok && name == "stack" {
			out.AppendString("\n    " + strings.ReplaceAll(strings.TrimSpace(stack), "\n", "\n    "))
			continue
		}
		out.AppendString("  " + paint(dim, name+"=") + quoted(all.Fields[name]))
	}
	out.AppendByte('\n')
	return out, nil
}

// quoted is a value, in quotes where it would not be clear where it ends.
func quoted(value any) string {
	var s string
	switch v := value.(type) {
	case string:
		s = v
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	default:
		s = fmt.Sprint(v)
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == '"' }) {
		return strconv.Quote(s)
	}
	return s
}

func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
