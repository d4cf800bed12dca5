// Package migrations holds the ledger's schema, embedded: forward only, in goose's form.
package migrations

import "embed"

// FS holds the numbered files.
//
//go:embed *.sql
var FS embed.FS

// Level is the number of the newest file. A binary refuses a schema whose schema_compat.oldest_binary is higher.
const Level = 1
