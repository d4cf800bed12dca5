package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"testing"
)

const dashboardFile = "../../deploy/grafana/purchase-relay.json"

// panel is a panel of the dashboard.
type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Datasource  struct {
		UID string `json:"uid"`
	} `json:"datasource"`
	GridPos struct {
		X, Y, W, H int
	} `json:"gridPos"`
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []struct {
		RefID      string `json:"refId"`
		Expr       string `json:"expr"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
	} `json:"targets"`
}

func grafanaPanels(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID           string  `json:"uid"`
		Title         string  `json:"title"`
		SchemaVersion int     `json:"schemaVersion"`
		Panels        []panel `json:"panels"`
		Templating    struct {
			List []struct{ Name, Type, Query string } `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	variables := fmt.Sprint(d.Templating.List)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 30 || len(d.Panels) == 0 ||
		variables != "[{datasource datasource prometheus}]" {
		t.Errorf("the dashboard lacks an id, a title, a schema, panels or its data source: %+v", d)
	}
	return d.Panels
}

// Each panel has a description, a unit, the chosen data source and known metrics. Together they show every
// metric.
func TestGrafana_ShowsEveryMetric(t *testing.T) {
	t.Parallel()
	rows := documented(t)
	shown, ids := "", map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range grafanaPanels(t) {
		if ids[p.ID] {
			t.Errorf("%s: id %d is not unique", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s overlaps %q or the edge at %d, %d", p.Title, other, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" ||
			p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q lacks a title, description, unit, data source or query", p.ID, p.Title)
		}
		for _, q := range p.Targets {
			if unknown := unknownMetrics(q.Expr, rows); len(unknown) > 0 {
				t.Errorf("%s uses metrics that docs/metrics.md lacks: %v", p.Title, unknown)
			}
			if q.Datasource.UID != "${datasource}" || q.RefID == "" {
				t.Errorf("%s has a query without the data source or id: %+v", p.Title, q)
			}
			shown += q.Expr + "\n"
		}
	}
	for name := range rows {
		if !regexp.MustCompile(name + `(_bucket|_sum|_count)?\b`).MatchString(shown) {
			t.Errorf("no panel shows %s", name)
		}
	}
}
