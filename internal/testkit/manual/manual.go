// Package manual reads what is said about the configuration, to hold it against the code: --help, docs/configuration.md,
// .env.example, the README, and what the containers and the Kubernetes manifests pass on.
package manual

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Variable is one that a binary takes.
type Variable struct {
	Name    string
	Default string // "": none
	File    bool   // may come from a file
	Help    string
}

var (
	flagLine  = regexp.MustCompile(`^\s+(?:-\w, )?\s*--(\S+)(.*)$`)
	variables = regexp.MustCompile(`\(\$([A-Z][A-Z0-9_]*)(, \$[A-Z0-9_]+_FILE)?\)`)
	holder    = regexp.MustCompile(`^[A-Z-]+(,...)?$`) // TEXT, STRING, DURATION: no default
	assigned  = regexp.MustCompile(`^#?([A-Z][A-Z0-9_]*)=(.*)$`)
	passedOn  = regexp.MustCompile(`\$\{([A-Z][A-Z0-9_]*)`)
	command   = regexp.MustCompile(`^  ([a-z][a-z-]*)`)
)

// Commands reads the names of the commands out of a help text.
func Commands(help string) (list []string) {
	_, rest, _ := strings.Cut(help, "\nCommands:\n")
	section, _, _ := strings.Cut(rest, "\nFlags:\n")
	for line := range strings.Lines(section) {
		if m := command.FindStringSubmatch(line); m != nil {
			list = append(list, m[1])
		}
	}
	return list
}

// Parse reads the variables out of a help text.
func Parse(help string) (list []Variable) {
	_, section, _ := strings.Cut(help, "\nFlags:\n")
	var flag, text string
	end := func() {
		if m := variables.FindStringSubmatch(text); m != nil {
			v := Variable{Name: m[1], File: m[2] != "", Help: strings.TrimSpace(text[:strings.Index(text, m[0])])}
			if _, value, ok := strings.Cut(flag, "="); ok && !holder.MatchString(value) {
				v.Default = strings.TrimSuffix(strings.Trim(value, `"`), ",...")
			}
			list = append(list, v)
		}
		flag, text = "", ""
	}
	for line := range strings.Lines(section) {
		switch m := flagLine.FindStringSubmatch(strings.TrimRight(line, "\n")); {
		case m != nil:
			end()
			flag, text = m[1], strings.TrimSpace(m[2])
		case flag != "":
			text = strings.TrimSpace(text + " " + strings.TrimSpace(line))
		}
	}
	end()
	return list
}

// Row is one variable of docs/configuration.md.
type Row struct {
	Default string
	File    bool
}

// table reads a section of docs/configuration.md.
func table(root, section string) (map[string]Row, error) {
	text, err := os.ReadFile(filepath.Join(root, "docs/configuration.md")) //nolint:gosec // a file of the sources
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(text), "\n## "+section+"\n")
	if !ok {
		return nil, fmt.Errorf("docs/configuration.md has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	rows := make(map[string]Row)
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.TrimSpace(cells[4]) == "" {
			return nil, fmt.Errorf("docs/configuration.md: a row has four cells and ends with a meaning: %s", line)
		}
		row := Row{Default: strings.Trim(strings.TrimSpace(cells[2]), "`"), File: strings.TrimSpace(cells[3]) == "file"}
		if row.Default == "empty" || row.Default == "required" {
			row.Default = ""
		}
		for name := range strings.SplitSeq(cells[1], ",") {
			rows[strings.Trim(strings.TrimSpace(name), "`")] = row
		}
	}
	return rows, nil
}

// Example reads .env.example: each variable's value, and the names that no comment explains.
func Example(root string) (values map[string]string, bare []string, err error) {
	text, err := os.ReadFile(filepath.Join(root, ".env.example")) //nolint:gosec // a file of the sources
	if err != nil {
		return nil, nil, err
	}
	values = make(map[string]string)
	explained := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		m := assigned.FindStringSubmatch(line)
		switch {
		case line == "":
			explained = false
		case m == nil:
			explained = true
		default:
			if _, twice := values[m[1]]; twice {
				return nil, nil, fmt.Errorf(".env.example has %s twice", m[1])
			}
			if values[m[1]] = m[2]; !explained {
				bare = append(bare, m[1])
			}
		}
	}
	return values, bare, nil
}

// Service is a container of docker-compose.yml, as far as the checks look.
type Service struct {
	Image       string            `yaml:"image"`
	Command     any               `yaml:"command"` // a string or a list
	EnvFile     string            `yaml:"env_file"`
	Environment map[string]string `yaml:"environment"`
	Profiles    []string          `yaml:"profiles"`
	Networks    []string          `yaml:"networks"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
	DependsOn map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
}

// Compose is what a stack of containers passes on.
type Compose struct {
	// Services are those of docker-compose.yml, their environment with that of their files.
	Services map[string]Service
	// Interpolated are all variables that the files read from .env, with the default that stands there.
	Interpolated map[string]string
}

// containers are the services that run a binary.
var containers = map[string][]string{"ingest": {"ingest", "migrate", "provision", "prune"}, "tiktok-worker": {"tiktok-worker"}}

// real is the part of a file's name that a TIKTOK_ACCESS_TOKEN puts in.
const real = "${TIKTOK_ACCESS_TOKEN:+-real}"

var defaulted = regexp.MustCompile(`\$\{([A-Z][A-Z0-9_]*):-([^$}]*)\}`)

// ReadCompose reads docker-compose.yml, the cluster's file, and the files in deploy/compose that they name.
func ReadCompose(root string) (*Compose, error) {
	c := &Compose{Interpolated: make(map[string]string)}
	files := []string{filepath.Join(root, "docker-compose.yml"), filepath.Join(root, "deploy/compose.cluster.yml")}
	more, err := filepath.Glob(filepath.Join(root, "deploy/compose/*"))
	if err != nil {
		return nil, err
	}
	for _, file := range append(more, files...) {
		text, err := os.ReadFile(file) //nolint:gosec // a file of the sources
		if err != nil {
			return nil, err
		}
		for _, m := range passedOn.FindAllSubmatch(text, -1) {
			c.Interpolated[string(m[1])] += ""
		}
		for _, m := range defaulted.FindAllSubmatch(text, -1) {
			if c.Interpolated[string(m[1])] == "" {
				c.Interpolated[string(m[1])] = string(m[2])
			}
		}
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	var file struct {
		Services map[string]Service `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("docker-compose.yml: %w", err)
	}
	c.Services = file.Services
	for name, s := range c.Services {
		if s.EnvFile == "" {
			continue
		}
		local, err := environment(filepath.Join(root, strings.Replace(s.EnvFile, real, "", 1)))
		if err != nil {
			return nil, err
		}
		withToken, err := environment(filepath.Join(root, strings.Replace(s.EnvFile, real, "-real", 1)))
		if err != nil {
			return nil, err
		}
		if !slices.Equal(slices.Sorted(maps.Keys(local)), slices.Sorted(maps.Keys(withToken))) {
			return nil, fmt.Errorf("docker-compose.yml: %s: %s passes on other variables with a token than without", name, s.EnvFile)
		}
		maps.Copy(s.Environment, withToken)
		maps.Copy(s.Environment, local)
	}
	return c, nil
}

func environment(file string) (map[string]string, error) {
	text, err := os.ReadFile(file) //nolint:gosec // a file of the sources
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			values[name] = value
		}
	}
	return values, nil
}

// Problems holds everything that is said against the variables that a binary takes; each problem says what to write where.
func Problems(root, binary string, takes []Variable) (list []string) {
	both, err := table(root, "Both")
	if err != nil {
		return []string{err.Error()}
	}
	own, err := table(root, binary)
	if err != nil {
		return []string{err.Error()}
	}
	example, bare, err := Example(root)
	if err != nil {
		return []string{err.Error()}
	}
	compose, err := ReadCompose(root)
	if err != nil {
		return []string{err.Error()}
	}
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	known := make(map[string]bool)
	for _, v := range takes {
		known[v.Name] = true
		row, ok := own[v.Name]
		if !ok {
			row, ok = both[v.Name]
		}
		want := Row{Default: v.Default, File: v.File}
		switch {
		case !ok:
			say("docs/configuration.md lacks %[1]s. Under \"## %[2]s\":\n| `%[1]s` | %[3]s | %[4]s | %[5]s |", v.Name, binary, orEmpty(v.Default), fileCell(v.File), v.Help)
		case row != want:
			say("docs/configuration.md says %s is by default %q, from a file %t; the code says %q, %t", v.Name, row.Default, row.File, v.Default, v.File)
		}
		value, ok := example[v.Name]
		switch {
		case !ok:
			say(".env.example lacks %[1]s. With a comment that says what it is and where its value comes from:\n#%[1]s=%[2]s", v.Name, v.Default)
		case v.Default != "" && value != v.Default && value != compose.Interpolated[v.Name] && !differs(v.Name):
			say(".env.example shows %s=%s; the default is %q, in the containers %q", v.Name, value, v.Default, compose.Interpolated[v.Name])
		}
		if !slices.ContainsFunc(containers[binary], func(name string) bool { _, ok := compose.Services[name].Environment[v.Name]; return ok }) {
			say("docker-compose.yml does not pass %[1]s on. To the environment of %[2]s:\n      %[1]s: ${%[1]s:-}", v.Name, binary)
		}
	}
	for name := range both {
		if !known[name] {
			say("docs/configuration.md has %s for both binaries; %s does not take it", name, binary)
		}
	}
	for name := range own {
		if !known[name] {
			say("docs/configuration.md has %s, which %s does not take", name, binary)
		}
	}
	for _, container := range containers[binary] {
		for name := range compose.Services[container].Environment {
			if !known[name] && name != "GOMEMLIMIT" {
				say("docker-compose.yml tells %s %s, which it does not take", container, name)
			}
		}
	}
	for _, name := range bare {
		say(".env.example has no comment above %s: what is it, where does its value come from?", name)
	}
	slices.Sort(list)
	return list
}

// differs says whether the two binaries have a default each.
func differs(name string) bool { return name == "ADMIN_ADDR" }

func orEmpty(value string) string {
	if value == "" {
		return "empty"
	}
	return "`" + value + "`"
}

func fileCell(file bool) string {
	if file {
		return "file"
	}
	return ""
}

// Documented are all variables of docs/configuration.md, with their forms as files.
func Documented(root string) (map[string]bool, error) {
	all := make(map[string]bool)
	for _, section := range []string{"Both", "ingest", "tiktok-worker"} {
		rows, err := table(root, section)
		if err != nil {
			return nil, err
		}
		for name, row := range rows {
			all[name] = true
			if row.File {
				all[name+"_FILE"] = true
			}
		}
	}
	return all, nil
}
