package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
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
)

// source is what a document is made from.
type source struct {
	artefact string
	version  string
	created  time.Time
	patterns []string // of the binaries in the artefact
}

// noAssertion stands for a fact that the document does not state. The licences' texts are in the file
// LICENCES of each artefact.
const noAssertion = "NOASSERTION"

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
	digest := hex.EncodeToString(sum[:])
	name := filepath.Base(s.artefact)
	top := &spdx.Package{
		PackageName: name, PackageSPDXIdentifier: "artefact", PackageVersion: s.version,
		PackageFileName: name, PackageDownloadLocation: noAssertion,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: "MIT", PackageCopyrightText: noAssertion,
		PackageChecksums: []common.Checksum{{Algorithm: common.SHA256, Value: digest}},
	}
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: name,
		DocumentNamespace: "https://spdx.org/spdxdocs/" + url.PathEscape(name) + "-" + digest,
		CreationInfo: &spdx.CreationInfo{
			Created:  s.created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "purchase-relay-sbom"}},
		},
		Packages:      []*spdx.Package{top},
		Relationships: []*spdx.Relationship{relation("DOCUMENT", common.TypeRelationshipDescribe, "artefact")},
	}
	for _, m := range modules {
		doc.Packages = append(doc.Packages, m)
		doc.Relationships = append(doc.Relationships,
			relation("artefact", common.TypeRelationshipContains, m.PackageSPDXIdentifier))
	}
	var out bytes.Buffer
	if err := json.Write(doc, &out, json.Indent("  ")); err != nil {
		return nil, fmt.Errorf("encode the document: %w", err)
	}
	return out.Bytes(), nil
}

// modules returns the modules of all binaries and the Go version, each once, by name.
func (s source) modules() ([]*spdx.Package, error) {
	var binaries []string
	for _, pattern := range s.patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("find the binaries: %w", err)
		}
		binaries = append(binaries, found...)
	}
	if len(binaries) == 0 {
		return nil, errors.New("find the binaries: no file matches")
	}
	all := map[string]*spdx.Package{}
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
	return slices.SortedFunc(maps.Values(all), func(a, b *spdx.Package) int {
		return cmp.Or(cmp.Compare(a.PackageName, b.PackageName), cmp.Compare(a.PackageVersion, b.PackageVersion))
	}), nil
}

var notInIdentifier = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// add adds a module under its package URL, by which scanners find its vulnerabilities.
func add(all map[string]*spdx.Package, path, version string) {
	id := common.ElementID("module-" + notInIdentifier.ReplaceAllString(path+"-"+version, "-"))
	all[path+"@"+version] = &spdx.Package{
		PackageName: path, PackageSPDXIdentifier: id, PackageVersion: version, PackageDownloadLocation: noAssertion,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion,
		PackageCopyrightText: noAssertion,
		PackageExternalReferences: []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
			Locator: "pkg:golang/" + path + "@" + url.PathEscape(version),
		}},
	}
}

func relation(from common.ElementID, kind string, to common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: from}, Relationship: kind,
		RefB: common.DocElementID{ElementRefID: to},
	}
}
