package dashboard

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Folder folds the changes since the last time into the rollup's totals. It is safe to be called by several replicas: one of
// them folds at a time.
type Folder interface {
	Fold(ctx context.Context) (hours int, err error)
}

// foldEvery is how often changes are folded. Figures are exact in between, too; they only cost a little more.
const foldEvery = 2 * time.Second

// foldTimeout bounds one folding: after a long time without any ingest there may be much to fold.
const foldTimeout = time.Minute

// KeepFolded folds until ctx ends.
func KeepFolded(f Folder, log *zap.Logger) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(foldEvery)
		defer tick.Stop()
		told := false
		for {
			err := fold(ctx, f)
			if err != nil && !told && ctx.Err() == nil {
				log.Warn("The dashboard's figures are not folded; they stay exact and become slower", zap.Error(err))
			}
			told = err != nil
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

func fold(ctx context.Context, f Folder) error {
	ctx, cancel := context.WithTimeout(ctx, foldTimeout)
	defer cancel()
	_, err := f.Fold(ctx)
	return err
}
