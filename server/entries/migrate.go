// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/assay-id/assay/server/store"
)

// MoveIDs gives the ids that callers chose the keys of their own that they have now. They were among those
// of the inventory of TPMs (i/), where the deletion of an entry with a TPM's hash for its id took the TPM, too. What
// was moved before stays moved.
func MoveIDs(ctx context.Context, s *store.Store) error {
	const former = "i/"
	for {
		kvs, _, err := s.Snapshot(ctx, former)
		if err != nil {
			return fmt.Errorf("read the ids of entries: %w", err)
		}
		var txn store.Txn
		for _, kv := range kvs {
			if !strings.HasPrefix(string(kv.Value), entryPrefix) || len(txn.Compares) == store.MaxOps/2 {
				continue
			}
			txn.Compares = append(txn.Compares, store.Unchanged(kv.Key, kv.Revision))
			txn.Puts = append(txn.Puts, store.KV{Key: idPrefix + kv.Key[len(former):], Value: kv.Value})
			txn.Deletes = append(txn.Deletes, kv.Key)
		}
		if len(txn.Puts) == 0 {
			return nil
		}
		if _, err := s.Commit(ctx, txn); err != nil && !errors.Is(err, store.ErrConflict) { // else one was deleted meanwhile
			return fmt.Errorf("move the ids of entries: %w", err)
		}
	}
}
