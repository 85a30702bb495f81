//! Conversions between candle tensors and ours.
#![cfg(feature = "candle")]

use candle_core::{DType as C, Device, Tensor as Candle};
use lacuna::candle::with_view;
use lacuna::{DType, Elements, Tensor, TensorView, Weight};

fn grid() -> Candle {
    Candle::arange(0f32, 6., &Device::Cpu)
        .unwrap()
        .reshape((2, 3))
        .unwrap()
}

#[test]
fn tensors_go_there_and_back() {
    let ours = Tensor {
        shape: vec![2, 3],
        data: vec![0., 1., 2., 3., 4., 5.],
    };
    let theirs = Candle::try_from(&ours).unwrap();
    assert_eq!(theirs.dims(), [2, 3]);
    assert_eq!(Tensor::try_from(&theirs).unwrap(), ours);
    let scalar = Candle::new(2.5f32, &Device::Cpu).unwrap();
    let scalar = Tensor::try_from(&scalar).unwrap();
    assert_eq!((scalar.shape.len(), scalar.data), (0, vec![2.5]));
}

#[test]
fn strides_offsets_and_dtypes_are_converted() {
    let turned = grid().t().unwrap();
    assert_eq!(
        Tensor::try_from(&turned).unwrap().data,
        [0., 3., 1., 4., 2., 5.]
    );
    let row = grid().narrow(0, 1, 1).unwrap();
    assert_eq!(Tensor::try_from(&row).unwrap().data, [3., 4., 5.]);
    for dtype in [C::F64, C::F16, C::BF16, C::U8, C::U32, C::I64] {
        let t = grid().to_dtype(dtype).unwrap();
        assert_eq!(Tensor::try_from(&t).unwrap().data, [0., 1., 2., 3., 4., 5.]);
    }
}

#[test]
fn a_contiguous_view_is_lent_without_a_copy() {
    let t = grid().narrow(0, 1, 1).unwrap();
    let data = |v: TensorView<'_>| match v.elements() {
        Elements::F32(data) => (data.to_vec(), data.as_ptr()),
        Elements::I64(_) => panic!("a view of integers"),
    };
    let first = with_view(&t, |v| data(v).1).unwrap();
    let again = with_view(&t, |v| {
        assert_eq!((v.shape(), data(v).0), (&[1, 3][..], vec![3f32, 4., 5.]));
        data(v).1
    });
    assert_eq!(first, again.unwrap());
}

#[test]
fn a_view_that_contradicts_itself_is_refused() {
    let error = Candle::try_from(TensorView::f32(&[2, 2], &[1.0; 3])).unwrap_err();
    assert!(error.to_string().contains("[2, 2]"), "{error}");
}

#[test]
fn weights_keep_their_dtype_and_bits() {
    let source = (grid() * 0.3).unwrap();
    for (theirs, ours) in [
        (C::F32, DType::F32),
        (C::F16, DType::F16),
        (C::BF16, DType::BF16),
    ] {
        let t = source.to_dtype(theirs).unwrap();
        let weight = Weight::try_from(&t).unwrap();
        assert_eq!((weight.dtype(), weight.shape()), (ours, &[2, 3][..]));
        for weight in [weight.clone(), weight.encode()] {
            let back = Candle::try_from(&weight).unwrap();
            assert_eq!(back.dtype(), theirs);
            assert_eq!(
                Tensor::try_from(&back).unwrap(),
                Tensor::try_from(&t).unwrap()
            );
        }
    }
    let double = Weight::try_from(&grid().to_dtype(C::F64).unwrap()).unwrap();
    assert_eq!(double.dtype(), DType::F32);
    let turned = Weight::try_from(&grid().t().unwrap()).unwrap();
    assert_eq!(turned.to_f32().unwrap(), [0., 3., 1., 4., 2., 5.]);
}

#[test]
fn integers_are_no_weights_but_integer_constants_convert() {
    let error = Weight::try_from(&grid().to_dtype(C::I64).unwrap()).unwrap_err();
    assert!(error.to_string().contains("I64"), "{error}");
    let bytes: Vec<u8> = [-1i64, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
    let weight = Weight::dense(vec![2], DType::I64, bytes.into()).unwrap();
    let t = Candle::try_from(&weight).unwrap();
    assert_eq!(t.to_vec1::<i64>().unwrap(), [-1, 7]);
    let signed = Weight::dense(vec![1], DType::I8, vec![1].into()).unwrap();
    assert!(
        Candle::try_from(&signed)
            .unwrap_err()
            .to_string()
            .contains("I8")
    );
}
