package main

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/service"
)

// pruneRepeatedly prunes now and then again at each interval, until ctx ends: for a container without cron.
// What stays for a person to decide (exit status 3 of a single run) is no failure of the schedule.
func pruneRepeatedly(ctx context.Context, c *config, out io.Writer) error {
	log := c.Logger(out)
	return repeat(ctx, c.Prune.Every, func(ctx context.Context) error {
		err := prune(ctx, c, nil, out)
		if errors.Is(err, service.ErrLeft) {
			return nil
		}
		return err
	}, func(err error) {
		log.Error("Prune failed", zap.Error(err), zap.Duration("next", c.Prune.Every))
	})
}

// repeat runs a job immediately and then at each interval, until ctx ends. A failure is reported and the job
// repeated, unless it is the configuration's.
func repeat(
	ctx context.Context, every time.Duration, job func(context.Context) error, report func(error),
) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := job(ctx)
		var usage *service.UsageError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &usage):
			return err
		case err != nil:
			report(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
