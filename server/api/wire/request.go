// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxShown is how large a request may be in the wire format to be shown to a policy, in bytes: as
// large as one over TCP can be.
const maxShown = 4 << 20

// Shown returns a request as JSON values for a policy: fields by their names in the protocol,
// numbers as such, enumerations by name. Bytes (keys, CSRs, certificates, attestations) and join
// tokens are left out. What is too large to be shown is refused: a policy must not judge by a part.
func Shown(req any) (map[string]any, error) {
	m, ok := req.(proto.Message)
	if !ok {
		return nil, status.Errorf(codes.Internal, "a request of type %T", req)
	}
	if proto.Size(m) > maxShown {
		return nil, status.Errorf(codes.ResourceExhausted, "the request is larger than the %d MiB that the authorization policy is shown; send it in parts", maxShown>>20)
	}
	return shownMessage(m.ProtoReflect()), nil
}

func shownMessage(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if secret(f) {
			return true
		}
		name := string(f.Name())
		switch {
		case f.IsMap():
			entries := map[string]any{}
			if f.MapValue().Kind() == protoreflect.BytesKind {
				return true
			}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = shown(f.MapValue(), v)
				return true
			})
			out[name] = entries
		case f.IsList():
			l := v.List()
			items := make([]any, l.Len())
			for i := range items {
				items[i] = shown(f, l.Get(i))
			}
			out[name] = items
		default:
			out[name] = shown(f, v)
		}
		return true
	})
	return out
}

// secret: what a policy, and its log, have no business with.
func secret(f protoreflect.FieldDescriptor) bool {
	if !f.IsMap() && f.Kind() == protoreflect.BytesKind {
		return true
	}
	return f.FullName() == "spire.api.server.agent.v1.CreateJoinTokenRequest.token"
}

func shown(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return shownMessage(v.Message())
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
		return int64(v.Enum())
	}
	return v.Interface()
}
