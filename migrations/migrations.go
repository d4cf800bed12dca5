// Package migrations holds the ledger's schema, embedded: forward only, in goose's form.
package migrations

import "embed"

// FS holds the numbered files.
//
//go:embed *.sql
var FS embed.FS

// Level is the number of the newest file. A schema that asks for a higher one than a binary's Level is too new
// for that binary.
const Level = 5
