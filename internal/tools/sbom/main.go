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
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"purchase-relay/internal/testkit/try"
)

func main() {
	var s source
	flag.StringVar(&s.artefact, "artefact", "", "archive or package that the document describes")
	flag.StringVar(&s.version, "version", "", "version of the artefact")
	created := flag.String("created", "", "time of the commit, RFC 3339")
	out := flag.String("out", "", "file to write")
	flag.Parse()
	s.pattern = flag.Arg(0)
	try.Main("sbom", func(context.Context) (err error) {
		if s.created, err = time.Parse(time.RFC3339, *created); err != nil {
			return fmt.Errorf("parse -created: %w", err)
		}
		text, err := s.document()
		if err != nil {
			return err
		}
		return os.WriteFile(*out, text, 0o644) //nolint:gosec // published, like the artefact
	})
}

// source is what a document is made from.
type source struct {
	artefact string
	version  string
	created  time.Time
	pattern  string // of the binaries in the artefact
}

// document returns the SPDX document as JSON.
func (s source) document() ([]byte, error) {
	content, err := os.ReadFile(s.artefact)
	if err != nil {
		return nil, fmt.Errorf("read the artefact: %w", err)
	}
	modules, err := s.modules()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	digest, name := hex.EncodeToString(sum[:]), filepath.Base(s.artefact)
	top := newPackage(name, s.version, "artefact")
	top.PackageFileName, top.PackageLicenseDeclared = name, "MIT"
	top.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: digest}}
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: name,
		DocumentNamespace: "https://spdx.org/spdxdocs/" + url.PathEscape(name) + "-" + digest,
		CreationInfo: &spdx.CreationInfo{
			Created:  s.created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "purchase-relay-sbom"}},
		},
		Packages:      []*spdx.Package{top},
		Relationships: []*spdx.Relationship{relation("DOCUMENT", common.TypeRelationshipDescribe, top)},
	}
	for _, key := range slices.Sorted(maps.Keys(modules)) {
		doc.Packages = append(doc.Packages, modules[key])
		doc.Relationships = append(doc.Relationships,
			relation("artefact", common.TypeRelationshipContains, modules[key]))
	}
	var out bytes.Buffer
	if err := json.Write(doc, &out, json.Indent("  ")); err != nil {
		return nil, fmt.Errorf("encode the document: %w", err)
	}
	return out.Bytes(), nil
}

// modules returns the modules of all binaries and the Go version, by path@version.
func (s source) modules() (map[string]*spdx.Package, error) {
	binaries, err := filepath.Glob(s.pattern)
	if err != nil {
		return nil, fmt.Errorf("find the binaries: %w", err)
	}
	if len(binaries) == 0 {
		return nil, errors.New("find the binaries: no file matches")
	}
	all := make(map[string]*spdx.Package)
	for _, binary := range binaries {
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return nil, fmt.Errorf("read the modules of %s: %w", filepath.Base(binary), err)
		}
		add(all, "stdlib", strings.TrimPrefix(info.GoVersion, "go"))
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			add(all, m.Path, m.Version)
		}
	}
	return all, nil
}

var notInIdentifier = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// add adds a module under its package URL, by which scanners find its vulnerabilities.
func add(all map[string]*spdx.Package, path, version string) {
	m := newPackage(path, version, "module-"+notInIdentifier.ReplaceAllString(path+"-"+version, "-"))
	m.PackageExternalReferences = []*spdx.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
		Locator: "pkg:golang/" + path + "@" + url.PathEscape(version),
	}}
	all[path+"@"+version] = m
}

// newPackage returns a package of which the document does not state more. The licences' texts are in the file
// LICENCES of each artefact.
func newPackage(name, version, id string) *spdx.Package {
	const unstated = "NOASSERTION"
	return &spdx.Package{
		PackageName: name, PackageVersion: version, PackageSPDXIdentifier: common.ElementID(id),
		PackageDownloadLocation: unstated, PackageLicenseConcluded: unstated, PackageLicenseDeclared: unstated,
		PackageCopyrightText: unstated,
	}
}

func relation(from common.ElementID, kind string, to *spdx.Package) *spdx.Relationship {
	return &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: from}, Relationship: kind,
		RefB: common.DocElementID{ElementRefID: to.PackageSPDXIdentifier},
	}
}
