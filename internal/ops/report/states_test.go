package report_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// readTable returns the cells of the Markdown table whose header row starts with heading, without code
// marks.
func readTable(t *testing.T, text, heading string) (rows [][]string) {
	t.Helper()
	_, after, ok := strings.Cut(text, "\n| "+heading)
	if !ok {
		t.Fatalf("no table starts with %q", heading)
	}
	for line := range strings.SplitSeq("| "+heading+after, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		if strings.Trim(cells[0], "-") != "" {
			rows = append(rows, cells)
		}
	}
	return rows
}

// The tables of docs/states.md match the code.
func TestStatesDocument(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	t.Run("statuses", func(t *testing.T) {
		var documented []purchase.Status
		for _, row := range readTable(t, text, "status |")[1:] {
			documented = append(documented, purchase.Status(row[0]))
		}
		if want := purchase.Statuses(); len(documented) < len(want) || !slices.Equal(documented[:len(want)], want) {
			t.Errorf("documented statuses = %v, want %v", documented, want)
		}
	})
	t.Run("meanings", func(t *testing.T) { // as on the pages
		for _, row := range readTable(t, text, "status |")[1:] {
			expectMeaning(t, row[1], guide.Purchase(purchase.Status(row[0]), ""))
		}
		for _, row := range readTable(t, text, "reason |")[1:] {
			expectMeaning(t, row[2], guide.Purchase(purchase.Status(row[1]), purchase.Reason(row[0])))
		}
	})
	t.Run("replayable", func(t *testing.T) {
		for _, row := range readTable(t, text, "reason |")[1:] {
			g := report.Group{Status: purchase.Status(row[1]), Reason: purchase.Reason(row[0])}
			if documented := strings.HasPrefix(row[3], "one, some, all"); documented != g.Replayable() {
				t.Errorf("%s (%s): documented %q, want replayable = %t", g.Status, g.Reason, row[3], g.Replayable())
			}
		}
	})
	t.Run("events", func(t *testing.T) { testEventsTable(t, readTable(t, text, `recorded \ proposed`)) })
	t.Run("outcomes", func(t *testing.T) { testOutcomesTable(t, readTable(t, text, `recorded \ outcome`)) })
}

func expectMeaning(t *testing.T, documented string, advice guide.Advice) {
	t.Helper()
	meaning := advice.Meaning
	if !strings.HasPrefix(documented, meaning) && !strings.HasPrefix(documented, guide.LowerFirst(meaning)) {
		t.Errorf("documented %q, want %q", documented, meaning)
	}
}

type state struct {
	status purchase.Status
	reason purchase.Reason
}

// statesOf parses a state's name; "paid" is each of the paid states.
func statesOf(name string) []state {
	switch name {
	case "unknown":
		return []state{{}}
	case "paid":
		return []state{
			{"pending", ""},
			{"published", ""},
			{"retrying", ""},
			{"delivered", ""},
			{"dead", "refused"},
			{"skipped", "no_consent"},
			{"skipped", "test_purchase"},
		}
	}
	status, reason, _ := strings.Cut(strings.TrimSuffix(name, ")"), " (")
	return []state{{purchase.Status(status), purchase.Reason(reason)}}
}

func testEventsTable(t *testing.T, rows [][]string) {
	t.Helper()
	if len(rows) != 7 {
		t.Fatalf("rows = %d, want 7", len(rows))
	}
	for _, row := range rows[1:] {
		for i, cell := range row[1:] {
			for _, from := range statesOf(row[0]) {
				for _, to := range statesOf(rows[0][i+1]) {
					got := purchase.Advances(from.status, from.reason, to.status, to.reason)
					if got != (cell == "●") {
						t.Errorf("%v to %v: advances = %t, documented %q", from, to, got, cell)
					}
				}
			}
		}
	}
}

func testOutcomesTable(t *testing.T, rows [][]string) {
	t.Helper()
	if len(rows) != 7 {
		t.Fatalf("rows = %d, want 7", len(rows))
	}
	const generation = 2
	for _, row := range rows[1:] {
		from := purchase.Status(row[0])
		for i, cell := range row[1:] {
			outcome, when, _ := strings.Cut(rows[0][i+1], ",")
			of := generation
			if when != "" {
				of--
			}
			outcomes := []purchase.Status{purchase.Status(outcome)}
			if outcome == "any other" {
				outcomes = []purchase.Status{purchase.StatusRetrying, purchase.StatusDead, purchase.StatusSkipped}
			}
			for _, o := range outcomes {
				if next, _ := purchase.Settle(from, generation, o, of); string(next) != cell {
					t.Errorf("%s, %s of generation %d: status = %s, documented %q", from, o, of, next, cell)
				}
			}
		}
	}
}
