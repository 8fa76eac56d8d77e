// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	evidencev1 "github.com/assay-id/assay/proto/evidence"
)

// fill sets every field of a message, so that one that is forgotten shows.
func fill(m protoreflect.Message) {
	for i, fields := 0, m.Descriptor().Fields(); i < fields.Len(); i++ {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).List().AppendMutable().Message())
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message())
		case f.Kind() == protoreflect.BytesKind:
			m.Set(f, protoreflect.ValueOfBytes(append(make([]byte, 31), 1)))
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("x"))
		case f.Kind() == protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(true))
		case f.Kind() == protoreflect.EnumKind:
			m.Set(f, protoreflect.ValueOfEnum(1))
		case f.Kind() == protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(1))
		case f.Kind() == protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(1))
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(1))
		default:
			panic("a field of kind " + f.Kind().String())
		}
	}
}

// zeros lists the fields that are zero, in depth.
func zeros(path string, v reflect.Value) (out []string) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			out = append(out, zeros(path+"."+v.Type().Field(i).Name, v.Field(i))...)
		}
		return out
	case reflect.Slice:
		for i := range v.Len() {
			out = append(out, zeros(path+"[]", v.Index(i))...)
		}
	}
	if v.IsZero() {
		out = append(out, path)
	}
	return out
}

func TestEveryFactIsRead(t *testing.T) {
	var p evidencev1.Facts
	fill(p.ProtoReflect())
	f, err := ReadFacts(&p)
	if err != nil {
		t.Fatal(err)
	}
	if missing := zeros("facts", reflect.ValueOf(*f)); len(missing) > 0 {
		t.Errorf("not read: %v", missing)
	}
}

func TestFactsThatNameNobody(t *testing.T) {
	for _, p := range []*evidencev1.Facts{nil, {}, {Process: &evidencev1.ProcessKey{}}, {Credentials: &evidencev1.Credentials{}}} {
		if f, err := ReadFacts(p); err == nil {
			t.Errorf("%v was read as %+v", p, f)
		}
	}
}
