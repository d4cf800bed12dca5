// Command sbom writes the software bill of materials of an archive or a package: an SPDX 2.3 document with
// the Go modules that the linker recorded in its binaries.
//
//	sbom -artefact purchase-relay_0.1.0_linux_amd64.tar.gz -version 0.1.0 -created 2026-11-28T16:00:00Z \
//	  -out purchase-relay_0.1.0_linux_amd64.tar.gz.spdx.json '*_linux_amd64_*/*'
//
// The same binaries give the same document: its name comes from the artefact's checksum, its time from
// -created.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"purchase-relay/internal/testkit/try"
)

func main() {
	var s source
	flag.StringVar(&s.artefact, "artefact", "", "archive or package that the document describes")
	flag.StringVar(&s.version, "version", "", "version of the artefact")
	created := flag.String("created", "", "time of the commit, RFC 3339")
	out := flag.String("out", "", "file to write")
	flag.Parse()
	s.patterns = flag.Args()
	try.Main("sbom", func(context.Context) error { return run(s, *created, *out) })
}

func run(s source, created, out string) (err error) {
	if s.created, err = time.Parse(time.RFC3339, created); err != nil {
		return fmt.Errorf("parse -created: %w", err)
	}
	text, err := s.document()
	if err != nil {
		return err
	}
	return os.WriteFile(out, text, 0o644) //nolint:gosec // published, like the artefact
}
