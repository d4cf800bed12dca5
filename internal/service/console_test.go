package service

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Colours are for a terminal: a character device, which the null device is, too. A file and a pipe get none.
func TestColours(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if newConsole(file).colours || newConsole(&bytes.Buffer{}).colours {
		t.Error("colours in a file")
	}
	line, err := newConsole(null).EncodeEntry(zapcore.Entry{Level: zapcore.ErrorLevel, Message: "Failed", Time: time.Unix(0, 0).UTC()}, []zapcore.Field{zap.Int("n", 1)})
	if want := "\x1b[2m00:00:00.000\x1b[0m  \x1b[31mERROR\x1b[0m  Failed                              \x1b[2mn=\x1b[0m1\n"; err != nil || line.String() != want {
		t.Errorf("%q, %v; want %q", line, err, want)
	}
}
