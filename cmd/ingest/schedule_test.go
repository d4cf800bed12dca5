package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"purchase-relay/internal/service"
)

// A schedule survives failures, keeps its interval, and ends with its context.
func TestRepeat_SurvivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 73*time.Hour)
		defer cancel()
		began, runs, reported := time.Now(), []time.Duration(nil), 0
		err := repeat(ctx, 24*time.Hour, func(context.Context) error {
			if runs = append(runs, time.Since(began)); len(runs) == 2 {
				return errors.New("the ledger is away")
			}
			return nil
		}, func(error) { reported++ })
		if err != nil || len(runs) != 4 || runs[3] != 72*time.Hour || reported != 1 {
			t.Errorf("runs at %v, %d failures reported, error = %v; want 4 runs a day apart, 1 and nil", runs, reported, err)
		}
	})
}

// A wrong configuration ends the schedule: it would fail every time.
func TestRepeat_EndsOnUsageError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := &service.UsageError{Problems: []string{"--older-than"}}
		err := repeat(t.Context(), time.Hour, func(context.Context) error { return want }, func(err error) { t.Errorf("reported %v", err) })
		if !errors.Is(err, want) {
			t.Errorf("error = %v, want %v", err, want)
		}
	})
}

// A schedule has no terminal to answer a question.
func TestConfig_ScheduledPruneNeedsYes(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"prune", "--every=24h"}, {"prune", "--yes", "--every=-1h"}} {
		if got := problems(t, args, "DATABASE_URL=postgres://h/d"); !strings.Contains(got, "--every") {
			t.Errorf("%v: problems = %q, want --every", args, got)
		}
	}
}
