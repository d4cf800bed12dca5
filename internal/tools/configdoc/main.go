// Command configdoc writes docs/configuration.md and .env.example from the binaries' configuration structs:
// go generate ./...
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"purchase-relay/internal/testkit/manual"
)

//go:generate go run .

func main() {
	const root = "../../.."
	files, err := manual.Generate(root)
	for name, content := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), []byte(content), 0o644) //nolint:gosec // for everyone
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}
