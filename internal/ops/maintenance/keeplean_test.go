package maintenance

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// drops answers each call with the next count; a negative one is a failure. Each call takes a second.
type drops struct {
	counts []int
	at     []time.Duration
	began  time.Time
}

func (d *drops) DropEnvelopes(_ context.Context, age time.Duration, limit int) (int, error) {
	if age != EnvelopeAge || limit != dropBatch {
		return 0, errors.New("wrong arguments")
	}
	d.at = append(d.at, time.Since(d.began))
	if len(d.counts) == 0 {
		return 0, nil
	}
	n := d.counts[0]
	d.counts = d.counts[1:]
	<-time.After(time.Second)
	if n < 0 {
		return 0, errors.New("away")
	}
	return n, nil
}

func TestKeepLean_RestsBetweenSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		d := &drops{counts: []int{dropBatch, dropBatch, 3, -1, -1}, began: time.Now()}
		if err := KeepLean(d.DropEnvelopes, zap.New(core))(ctx); err != nil {
			t.Fatal(err)
		}
		// A full batch rests four times its second; a short one, or a failure, a minute.
		want := []time.Duration{
			0, 5 * time.Second, 10 * time.Second, 71 * time.Second, 132 * time.Second,
			193 * time.Second,
		}
		if !slices.Equal(d.at, want) {
			t.Errorf("calls at %v, want %v", d.at, want)
		}
		if n := logs.FilterMessage("Envelopes not dropped; retrying").Len(); n != 1 {
			t.Errorf("failures logged %d times, want 1", n)
		}
	})
}
