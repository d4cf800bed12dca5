package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/stripegen"
)

// wiped lets many purchases wait for the workers, wipes the queue's store, and counts until all are delivered.
func (r *run) wiped(ctx context.Context) error {
	s := r.stack
	for _, p := range s.workers {
		p.terminate()
	}
	r.load = &load{sales: make(map[string]*sale), events: make(map[string]*sale), seed: r.Seed, taken: make(map[string]string)}
	random := rand.New(rand.NewPCG(r.Seed, 3)) //nolint:gosec // to be repeated, no secret
	for range r.Waiting {
		r.load.add(draw(random.Float64()*0.6, stripegen.NewCheckout().Live()))
	}
	began := time.Now()
	if err := r.load.play(ctx, s); err != nil {
		return err
	}
	if err := r.awaitCount(ctx, "published", r.Waiting); err != nil {
		return err
	}
	r.say("%d purchases were taken and published in %.1f s", r.Waiting, time.Since(began).Seconds())
	s.queue.kill()
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	began = time.Now()
	if err := s.queue.start(ctx); err != nil {
		return err
	}
	r.say("The queue's store was wiped and the server started anew")
	for _, p := range s.workers {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	if err := r.awaitCount(ctx, "delivered", r.Waiting); err != nil {
		r.findings.add("%v", err)
	}
	r.say("All had been delivered %.1f s later", time.Since(began).Seconds())
	if err := r.settle(ctx); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	return r.report()
}

func (r *run) awaitCount(ctx context.Context, status string, want int) error {
	var n []int
	var err error
	if await(ctx, func() bool {
		n, err = query(ctx, r.stack, pgx.RowTo[int], `SELECT count(*) FROM purchases WHERE status = $1`, status)
		return err == nil && n[0] == want
	}) {
		return nil
	}
	return fmt.Errorf("%v of %d purchases are %s: %w", n, want, status, err)
}
