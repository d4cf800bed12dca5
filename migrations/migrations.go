// Package migrations embeds the ledger's schema as forward-only goose migrations.
package migrations

import "embed"

// FS contains the numbered files.
//
//go:embed *.sql
var FS embed.FS

// Level is the number of the newest file. A binary rejects a schema whose schema_compat.oldest_binary is
// higher.
const Level = 1
