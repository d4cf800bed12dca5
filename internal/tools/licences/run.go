package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed ask for their text to be kept, and for nothing else.
func allowed() []string {
	return []string{"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC"}
}

// module is one that is linked into a binary.
type module struct{ path, version, dir string }

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("licences", flag.ContinueOnError)
	flags.SetOutput(out)
	texts := flags.Bool("texts", false, "print the licences themselves")
	if err := flags.Parse(args); err != nil {
		return err
	}
	modules, err := linked(ctx)
	if err != nil {
		return err
	}
	var wrong []error
	for _, m := range modules {
		names, text, err := m.licence()
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s %s: %w", m.path, m.version, err))
			continue
		}
		if *texts {
			_, _ = fmt.Fprintf(out, "%s %s\n\n%s\n\n", m.path, m.version, strings.TrimSpace(text))
		} else {
			_, _ = fmt.Fprintf(out, "%-45s %-20s %s\n", m.path, m.version, strings.Join(names, ", "))
		}
	}
	return errors.Join(wrong...)
}

// linked asks the go command for the modules in both binaries, as they are built for the images.
func linked(ctx context.Context) ([]module, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/...")
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var modules []module
	for line := range strings.Lines(string(list)) {
		if part := strings.Split(strings.TrimSpace(line), "\t"); len(part) == 3 {
			modules = append(modules, module{part[0], part[1], part[2]})
		}
	}
	slices.SortFunc(modules, func(a, b module) int { return strings.Compare(a.path, b.path) })
	if modules = slices.Compact(modules); len(modules) == 0 {
		return nil, errors.New("no module was found: run it from the project's root")
	}
	return modules, nil
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)([.-].*)?$`)

// licence reads a module's licence files; an error says what is wrong with them.
func (m module) licence() (names []string, text string, err error) {
	files, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, "", err
	}
	for _, file := range files {
		if file.IsDir() || !licenceFile.MatchString(file.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(m.dir, file.Name()))
		if err != nil {
			return nil, "", err
		}
		text += string(data) + "\n"
		names = append(names, namesIn(data)...)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return nil, "", errors.New("no licence was recognised: read it, and say so here if it may be used")
	}
	for _, name := range names {
		if !slices.Contains(allowed(), name) {
			return nil, "", fmt.Errorf("its licence %s asks for more than its own text: use another library", name)
		}
	}
	return names, text, nil
}

// namesIn are the licences that a text mostly consists of; a notice that quotes none has none.
func namesIn(text []byte) (names []string) {
	found := licensecheck.Scan(text)
	if found.Percent < 50 {
		return nil
	}
	for _, match := range found.Match {
		if !match.IsURL {
			names = append(names, match.ID)
		}
	}
	return names
}
