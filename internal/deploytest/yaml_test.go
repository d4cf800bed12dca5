// Package deploytest holds the containers, the Kubernetes manifests and the supply chain to their promises.
package deploytest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// at follows a path of keys and indices, separated by spaces, into decoded YAML. It returns nil where the
// path leads to nothing.
func at(value any, path string) any {
	for step := range strings.FieldsSeq(path) {
		switch v := value.(type) {
		case map[string]any:
			value = v[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

// list returns the elements at a path.
func list(value any, path string) []any {
	elements, _ := at(value, path).([]any)
	return elements
}

// text returns the value at a path as text: "" where the path leads to nothing.
func text(value any, path string) string {
	if found := at(value, path); found != nil {
		return fmt.Sprint(found)
	}
	return ""
}

// leaves returns the scalars below a value as " key=value", maps by the order of their keys.
func leaves(key string, value any) (all string) {
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			all += leaves(name, v[name])
		}
	case []any:
		for _, element := range v {
			all += leaves(key, element)
		}
	case nil:
	default:
		all = fmt.Sprintf(" %s=%v", key, v)
	}
	return all
}

// decode returns the documents of a YAML file.
func decode(t *testing.T, name string) (documents []map[string]any) {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(read(t, name)))
	for {
		var document map[string]any
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return documents
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		documents = append(documents, document)
	}
}

// manifests returns the objects of deploy/kubernetes as "Kind name".
func manifests(t *testing.T) map[string]any {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "deploy/kubernetes/*/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{}
	for _, file := range files {
		for _, object := range decode(t, strings.TrimPrefix(file, root)) {
			objects[text(object, "kind")+" "+text(object, "metadata name")] = object
		}
	}
	return objects
}

// podTemplates returns the template of each pod by the pod's name.
func podTemplates(t *testing.T) map[string]any {
	t.Helper()
	pods := map[string]any{}
	for _, object := range manifests(t) {
		for _, path := range []string{"spec template", "spec jobTemplate spec template"} {
			if template := at(object, path); template != nil {
				pods[text(template, "metadata labels app.kubernetes.io/name")] = template
			}
		}
	}
	return pods
}

// environment returns the values of a pod's variables.
func environment(template any) map[string]string {
	values := map[string]string{}
	for _, e := range list(template, "spec containers 0 env") {
		values[text(e, "name")] = text(e, "value")
	}
	return values
}

// ports returns a pod's ports by name.
func ports(template any) map[string]string {
	named := map[string]string{}
	for _, p := range list(template, "spec containers 0 ports") {
		named[text(p, "name")] = text(p, "containerPort")
	}
	return named
}
