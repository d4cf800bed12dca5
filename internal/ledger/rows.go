package ledger

import "github.com/jackc/pgx/v5"

// Skipped is a row that could not be used: the others of its batch were.
type Skipped struct {
	Where string // the operation, one of a small set: also a metric's label
	ID    string // the row's first column, as a rule its key
	Err   error
}

// OnSkip sets the function that is called for each row that is left out, before db is used. It is called from
// any goroutine.
func (db *DB) OnSkip(report func(Skipped)) { db.onSkip = report }

func (db *DB) skip(where, id string, err error) {
	if db.onSkip != nil {
		db.onSkip(Skipped{Where: where, ID: id, Err: err})
	}
}

// row is one row of pgx.Rows whose Scan leaves the rows open when it fails: pgx's own closes them, and the
// rows behind are lost.
type row struct{ pgx.Rows }

// Scan implements pgx.CollectableRow.
func (r row) Scan(fields ...any) error {
	return pgx.ScanRow(r.Conn().TypeMap(), r.FieldDescriptions(), r.RawValues(), fields...)
}

// id returns the row's first column as text. The wire format of text is the text.
func (r row) id() string {
	if values := r.RawValues(); len(values) > 0 {
		return storable(string(values[0]))
	}
	return ""
}

// collect reads every row by scan. A row that scan refuses is reported and left out.
func collect[T any](db *DB, where string, rows pgx.Rows, scan pgx.RowToFunc[T]) (list []T, err error) {
	err = each(rows, func(r row) error {
		value, err := scan(r)
		if err == nil {
			list = append(list, value)
		}
		return err
	}, func(id string, err error) { db.skip(where, id, err) })
	return list, err
}

// forEach scans every row into fields and calls use. A row that cannot be scanned, or that use refuses, is
// reported and left out.
func forEach(db *DB, where string, rows pgx.Rows, fields []any, use func() error) error {
	return each(rows, func(r row) error {
		if err := r.Scan(fields...); err != nil {
			return err
		}
		return use()
	}, func(id string, err error) { db.skip(where, id, err) })
}

func each(rows pgx.Rows, use func(r row) error, skip func(id string, err error)) error {
	defer rows.Close()
	for rows.Next() {
		if err := use(row{rows}); err != nil {
			skip(row{rows}.id(), err)
		}
	}
	return rows.Err()
}
