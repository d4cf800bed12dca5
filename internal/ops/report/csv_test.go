package report_test

import (
	"testing"

	"purchase-relay/internal/ops/report"
)

func TestCSVField_EscapesFormulas(t *testing.T) {
	t.Parallel()
	for cell, want := range map[string]string{
		"":                       "",
		"plain":                  "plain",
		"-5":                     "-5",
		"+1.5":                   "+1.5",
		"a-b":                    "a-b",
		"no event_id: 1=2":       "no event_id: 1=2",
		"=1+1":                   "'=1+1",
		"+1+1":                   "'+1+1",
		"-1+1":                   "'-1+1",
		"@SUM(A1)":               "'@SUM(A1)",
		"\uff1d1+1":              "'\uff1d1+1",
		"\uff0b1":                "'\uff0b1",
		"\uff0d1":                "'\uff0d1",
		"\uff20SUM(A1)":          "'\uff20SUM(A1)",
		"\x00=1+1":               "'=1+1",
		"\t=1+1":                 " '=1+1",
		"\r=1+1":                 " '=1+1",
		"\n=1+1":                 " '=1+1",
		"\u200b=1+1":             "'=1+1",
		"\ufeff=1+1":             "'=1+1",
		"\u00a0=1+1":             " '=1+1",
		"  =1+1":                 "  '=1+1",
		"\"=1+1":                 "\"'=1+1",
		"'=1+1":                  "''=1+1",
		"first\nsecond\x00third": "first secondthird",
		"x;=1+1":                 "x;'=1+1",
		"x;\" =1+1":              "x;\" '=1+1",
		"x\t@A1|\uff1dB1":        "x @A1|'\uff1dB1",
	} {
		if got := report.CSVField(cell); got != want {
			t.Errorf("CSVField(%q) = %q, want %q", cell, got, want)
		}
	}
}
