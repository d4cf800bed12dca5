package axe

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnpack_ChecksTheHash(t *testing.T) {
	t.Parallel()
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	files := tar.NewWriter(zipped)
	for name, text := range map[string]string{"package/axe.js": "no", "package/axe.min.js": "yes"} {
		header := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(text))}
		if err := files.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(files.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(archive.Bytes())
	hash := base64.StdEncoding.EncodeToString(sum[:])
	if script, err := unpack(archive.Bytes(), hash); err != nil || script != "yes" {
		t.Errorf("unpack = %q, %v, want yes", script, err)
	}
	changed := bytes.Clone(archive.Bytes())
	changed[len(changed)-1]++
	if _, err := unpack(changed, hash); err == nil || !strings.Contains(err.Error(), "hash") {
		t.Errorf("a changed archive: error = %v, want its hash", err)
	}
}

func TestSource_RejectsAnotherPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "axe-core-"+version+".tgz"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if script, err := Source(t.Context(), dir); err == nil {
		t.Errorf("Source = %.20q, want an error", script)
	}
}
