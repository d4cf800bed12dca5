package ledger

import (
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool returns the ledger's connections, for the packages of internal/ops that run statements of their own.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

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

// Collect reads every row by scan. A row that scan refuses is reported and left out.
func Collect[T any](db *DB, where string, rows pgx.Rows, scan pgx.RowToFunc[T]) (list []T, err error) {
	err = db.each(where, rows, func(r row) error {
		value, err := scan(r)
		if err == nil {
			list = append(list, value)
		}
		return err
	})
	return list, err
}

// ForEach scans every row into fields and calls use. A row that cannot be scanned, or that use refuses, is
// reported and left out.
func (db *DB) ForEach(where string, rows pgx.Rows, fields []any, use func() error) error {
	return db.each(where, rows, func(r row) error {
		if err := r.Scan(fields...); err != nil {
			return err
		}
		return use()
	})
}

func (db *DB) each(where string, rows pgx.Rows, use func(r row) error) error {
	defer rows.Close()
	for rows.Next() {
		r := row{rows}
		if err := use(r); err != nil {
			db.skip(where, r.id(), err)
		}
	}
	return rows.Err()
}

// OrZero returns the value of a column; null is the zero value.
func OrZero[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}
